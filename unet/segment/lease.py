"""The lease of an output: one run at a time may write to it.

On S3 the lease is an object that its holder rewrites again and again, on condition that nobody else has; a server
that does not know such conditions is found out at the beginning. A run that finds an object of another holder watches
it for one lifetime, on its own clock: if the object changes the holder lives, if not the lease is taken over. So a
holder that could not renew its lease for a lifetime must not write; at the next renewal it learns whether it still
holds it. In a local folder the lease is a lock of the kernel on a file, which ends with the process. The clocks of two
machines are never compared.
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unet.storage import store
from unet.storage.faults import Changed, Denied, StorageError, Unsupported, Vanished
from unet.storage.objects import join_uri
from unet.storage.s3 import S3Store

RENEWALS = 3
"""Renewals in a lifetime: each leaves a version where the bucket keeps them."""

POLLS = 12
"""Reads in a lifetime of a lease that another run holds, and attempts to renew one after an attempt that failed."""

UNUSED_ETAG = "0" * 32
"""An etag that no lease has."""

WARNING = "warning: the server of {} does not know {}; two runs that begin within moments of each other may both write"
"""About an output and the conditions of writes that its server ignores or refuses."""


class LeaseLost(Exception):  # noqa: N818
    """Another run holds the output, or has taken it over."""


class LeaseUnconfirmed(StorageError):  # noqa: N818
    """The lease could not be renewed for so long that this run must end."""


def boot_time() -> float:
    """Return seconds on a monotonic clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def is_holder(output: str, key: str, run: str) -> bool:
    """Return whether the run `run` was the last to get the lease of a local output."""
    try:
        return store.read(join_uri(output, key)).decode(errors="replace").startswith(f"{run} ")
    except Vanished:
        return False


class FolderLease:
    """A lock of the kernel on a file, whose content names the holder. Its methods mean what those of BucketLease do."""

    conditional = False

    def __init__(self, path: str, run: str, fence: int) -> None:
        self.fence = fence
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._lock(path)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{run} on {_process_name()}\n".encode(), 0)
        except OSError as error:
            raise StorageError(path, f"cannot be locked ({error.strerror})") from None

    def _lock(self, path: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 1000, 0).decode(errors="replace").strip()
            raise LeaseLost(f"another run holds it ({holder})") from None
        except OSError as error:  # as on some network file systems
            print(f"warning: {path} cannot be locked ({error.strerror}); let no other run write to this output")

    def seconds_left(self) -> float:
        return float("inf")

    def confirm(self) -> None:
        """Return at once: the kernel keeps others out."""

    def release(self) -> None:
        os.close(self._file)


@dataclass(frozen=True)
class _LeaseRecord:
    """The content of a lease on S3."""

    run: str
    fence: int
    lifetime: float
    """Seconds without a renewal after which the lease may be taken over."""
    host: str
    released: bool = False

    def to_bytes(self) -> bytes:
        return json.dumps({"format": 1, **self.__dict__, "beat": secrets.token_hex(8)}).encode()


class BucketLease:
    """An object, and the thread that renews it.

    `conditional`: whether the server writes on condition of an etag, and of there being no object.
    """

    def __init__(self, output: str, key: str, record: _LeaseRecord, profile: str | None) -> None:
        self._key, self._record = key, record
        self._store = S3Store(output, profile=profile, retry_seconds=record.lifetime / (2 * RENEWALS))
        self._uri = join_uri(output, key)
        self._state, self._stop = threading.Condition(), threading.Event()
        self._lost, self._released = "", False
        self._fault: StorageError | None = None
        """Of the last renewal."""
        self._missing: set[str] = set()
        """Conditions of writes that the server ignores or refuses."""
        self._acquire()
        self._probe()
        self.conditional = not self._missing
        self._thread = threading.Thread(target=self._heartbeat, daemon=True)
        self._thread.start()

    @property
    def fence(self) -> int:
        """Number of this holder, higher than that of every earlier one."""
        return self._record.fence

    def seconds_left(self) -> float:
        """Return for how many seconds nobody else can hold the output; 0 or less if somebody may already."""
        with self._state:
            return 0.0 if self._lost or self._released else self._deadline - boot_time()

    def failure(self) -> str | None:
        """Return why the lease cannot be renewed any more; None while it may yet be."""
        with self._state:
            hopeless = isinstance(self._fault, Denied) or boot_time() > self._deadline + self._record.lifetime
            if self._fault is None or boot_time() < self._deadline or not hopeless:
                return None
            return f"the lease could not be renewed ({self._fault.strerror})"

    def confirm(self) -> None:
        """Wait until nobody else can hold the output. Raise LeaseLost if another run does, or LeaseUnconfirmed."""
        while self.seconds_left() <= 0:
            if self._lost:
                raise LeaseLost(self._lost)
            if failure := self.failure():
                raise LeaseUnconfirmed(self._uri, failure)
            with self._state:
                self._state.wait(0.2)

    def release(self) -> None:
        """End the lease, so that others need not wait for the end of its lifetime."""
        with self._state:
            self._released = True  # from here on nobody of this run may write, whatever fails below
        self._stop.set()
        self._thread.join()
        if self._lost:
            return
        self._record = replace(self._record, released=True)
        with suppress(LeaseLost, Changed):  # another run has taken it over already, or a response was lost
            self._renew()

    def _acquire(self) -> None:
        """Write the object, if no other holder lives."""
        earlier, etag = self._read()
        if etag and not earlier.get("released"):
            earlier, etag = self._wait_for_expiry(earlier, etag)
        self._record = replace(self._record, fence=max(self._record.fence, int(earlier.get("fence", -1)) + 1))
        began = boot_time()
        try:
            self._write(etag)
        except Changed:  # written by another run, or by this one if the response to its first attempt was lost
            if self._read()[0].get("run") != self._record.run:
                raise LeaseLost("another run has just begun") from None
        self._deadline = began + self._record.lifetime

    def _wait_for_expiry(self, record: Mapping[str, Any], etag: str) -> tuple[Mapping[str, Any], str]:
        """Wait until the holder has released the lease or has not renewed it for a lifetime; return as `_read`."""
        lifetime = float(record.get("lifetime", self._record.lifetime))
        holder = f"{record.get('run')} on {record.get('host')}"
        print(f"{self._uri}: held by {holder}; watching for {lifetime:g} s whether it lives", flush=True)
        deadline = boot_time() + lifetime
        while (remaining := deadline - boot_time()) > 0:
            time.sleep(min(remaining, lifetime / POLLS))
            current, current_etag = self._read()
            if current_etag == etag:
                continue
            if not current_etag or current.get("released"):
                return current, current_etag
            raise LeaseLost(f"another run holds it ({holder})")
        print(f"{self._uri}: shows no sign of life; taking over", flush=True)
        return record, etag

    def _probe(self) -> None:
        """Find out whether the server writes where a condition is met, and there alone: some ignore conditions."""
        with suppress(Changed):  # by this run: a response was lost
            self._renew()
        for condition, wrong_etag in (("If-None-Match", ""), ("If-Match", UNUSED_ETAG)):
            with suppress(Changed):
                self._write(wrong_etag)
                self._missing.add(condition)
        if self._missing:
            print(WARNING.format(self._uri, " and ".join(sorted(self._missing))), flush=True)

    def _heartbeat(self) -> None:
        """Renew the lease again and again, until it is released or lost."""
        fault: StorageError | None = None
        while not self._stop.wait(self._record.lifetime / (RENEWALS if fault is None else POLLS)):
            fault = None
            try:
                self._renew()
            except LeaseLost as error:
                with self._state:
                    self._lost = str(error)
                    self._state.notify_all()
                return
            except Exception as error:  # the next renewal may succeed; only a StorageError has a text without secrets
                fault = error if isinstance(error, StorageError) else StorageError(self._uri, type(error).__name__)
            with self._state:
                self._fault = fault

    def _renew(self) -> None:
        """Rewrite the object. Raise LeaseLost if another run has, or Changed if this one has without a response."""
        began = boot_time()
        try:
            self._write(self._check_holder())
        except Changed:
            self._check_holder()
            raise
        with self._state:
            self._deadline = began + self._record.lifetime
            self._state.notify_all()

    def _check_holder(self) -> str:
        """Return the etag of the object. Raise LeaseLost if it is not of this run."""
        current, etag = self._read()
        if (current.get("run"), current.get("fence")) != (self._record.run, self._record.fence):
            holder = f"{current.get('run')} on {current.get('host')}" if etag else "nobody"
            raise LeaseLost(f"this run was not seen for {self._record.lifetime:g} s, and {holder} has taken it over")
        return etag

    def _write(self, expected_etag: str) -> None:
        """Write the object as `Store.put`, without a condition if the server does not know it."""
        data = self._record.to_bytes()
        try:
            self._store.put(self._key, data, expected_etag=expected_etag)
        except Unsupported:
            self._missing.add("If-Match" if expected_etag else "If-None-Match")
            self._store.put(self._key, data)

    def _read(self) -> tuple[Mapping[str, Any], str]:
        """Return content and etag of the object: {} if it cannot be parsed, {} and "" if there is none."""
        try:
            info = self._store.head(self._key)
            content = json.loads(self._store.get(self._key, info.etag))
        except Vanished:
            return {}, ""
        except Changed:
            return self._read()
        except ValueError:
            content = {}
        return content if isinstance(content, dict) else {}, info.etag


Lease = FolderLease | BucketLease


def acquire(output: str, key: str, *, run: str, lifetime: float, fence: int, profile: str | None = None) -> Lease:
    """Return a lease of `output` for the run `run`. Raise LeaseLost if another run holds it.

    Waits up to the lifetime of an earlier holder to see whether it lives. `key`: of the lease in the output;
    `lifetime`: seconds; `fence`: higher than that of everything recorded in the output; `profile`: as for `open_store`.
    """
    if output.startswith("s3://"):
        return BucketLease(output, key, _LeaseRecord(run, fence, lifetime, _process_name()), profile)
    return FolderLease(join_uri(output, key), run, fence)


def _process_name() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"
