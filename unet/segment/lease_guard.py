"""How the workers of a run know that it still holds its output: the driver publishes the state of the lease."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from typing import Any

import ray

from unet.runtime.background import repeat
from unet.segment.lease import Lease, LeaseLost, LeaseUnconfirmed, boot_time, is_holder
from unet.segment.run_spec import LEASE_KEY, RunSpec
from unet.segment.run_store import clear, lookup, publish
from unet.storage.objects import join_uri

WRITE_SECONDS = 15.0
"""Seconds that a write may take: it is begun only if the lease is valid for longer, or than a quarter of its lifetime
if that is less."""


class LeaseGuard:
    """Called before a write: waits until it is certain that this run still holds its output.

    The clocks of machines are not compared. The driver composes a message after the one before it was stored, which was
    after the last poll here that did not find that one yet. So the seconds that a message names are counted from that
    poll. There is no thread that polls: the end of the process could come in the middle of its call.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._on_s3 = spec.settings.output.startswith("s3://")
        self._lifetime = spec.settings.lease
        self._valid_until, self._last_poll = 0.0, boot_time()
        self._message: Any = lookup(spec, "lease") if self._on_s3 else None
        self._stored_after: float | None = None
        """Time of the last poll before `_message` was found."""
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Raise LeaseLost or LeaseUnconfirmed if the run does not hold its output any more."""
        if not self._on_s3:
            if not is_holder(self._spec.settings.output, LEASE_KEY, self._spec.run):
                raise LeaseLost("another run has taken the output over")
            return
        with self._lock:
            if boot_time() - self._last_poll > publish_interval(self._lifetime):
                self._poll()
            while boot_time() >= self._valid_until - min(WRITE_SECONDS, self._lifetime / 4):
                if self._message is not None and self._message["failure"]:
                    raise LeaseUnconfirmed(join_uri(self._spec.settings.output, LEASE_KEY), self._message["failure"])
                if not threading.main_thread().is_alive():
                    raise LeaseLost("the run has ended")
                time.sleep(publish_interval(self._lifetime) / 2)
                self._poll()

    def _poll(self) -> None:
        polled = boot_time()
        message = lookup(self._spec, "lease")
        if message is None and self._message is not None:
            raise LeaseLost("the run has ended")
        if message != self._message:
            if self._stored_after is not None:
                self._valid_until = self._stored_after + message["seconds_left"]
            self._message, self._stored_after = message, self._last_poll
        self._last_poll = polled


@contextmanager
def publish_lease(spec: RunSpec, lease: Lease) -> Iterator[None]:
    """Publish the state of the lease again and again within the block; then delete all that the run has published, by
    which its workers know that it has ended."""
    numbers = count()

    def announce() -> None:
        message = {"number": next(numbers), "seconds_left": lease.seconds_left(), "failure": lease.failure()}
        with suppress(ray.exceptions.RayError):  # workers that get no message wait
            publish(spec, "lease", message)

    on_s3 = spec.settings.output.startswith("s3://")
    try:
        with repeat(announce, publish_interval(spec.settings.lease)) if on_s3 else nullcontext():
            yield
    finally:
        clear(spec)


def publish_interval(lifetime: float) -> float:
    """Return the seconds between two messages about a lease with this lifetime."""
    return min(0.5, lifetime / 10)
