"""A worker of the segmentation job, and how it knows that its run still holds the output."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from unet.model.artifact import Model
from unet.runtime.memory import retain_freed_memory
from unet.runtime.pool import Worker
from unet.runtime.session import check_seen_here
from unet.segment.item import Item, Outcome
from unet.segment.lease import LeaseLost, boot_time, is_holder
from unet.segment.run_spec import LEASE_KEY, RunSpec
from unet.segment.segmenter import Segmenter
from unet.storage.objects import join_uri

WRITE_SECONDS = 15.0
"""Seconds that a write may take: it is begun only if the lease is valid for longer, or than a quarter of its lifetime
if that is less."""


class SegmentWorker(Worker):
    """Segments objects, on a GPU or on one CPU."""

    def __init__(self, spec: RunSpec, model: Model) -> None:
        super().__init__()
        retain_freed_memory()
        self._spec, self._guard = spec, LeaseGuard(spec)
        device = "cuda" if spec.settings.gpu else "cpu"
        self._segmenter = Segmenter(spec, model, device=device, guard=self._guard)

    def submit(self, task: Item) -> "Future[Outcome]":
        return self._segmenter.submit(task)

    def exchange(self, tasks: Sequence[tuple[int, Any]], message: float | None) -> list[tuple[int, Any]]:
        """As `Worker.exchange`; `message`: seconds for which the driver holds the lease."""
        if self._guard.replied is None:
            settings = self._spec.settings
            check_seen_here({"--input": settings.input, "--output": join_uri(settings.output, LEASE_KEY)})
        self._guard.extend(message)
        try:
            return super().exchange(tasks, message)
        finally:
            self._guard.replied = boot_time()


class LeaseGuard:
    """Called before a write: waits until it is certain that this run still holds its output.

    The clocks of machines are not compared: the driver composes a message after the last reply, so the seconds that it
    names are counted from there.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._on_s3 = spec.settings.output.startswith("s3://")
        self._margin = min(WRITE_SECONDS, spec.settings.lease / 4)
        self._valid_until, self._extended = 0.0, threading.Condition()
        self.replied: float | None = None
        """Time of the last reply to the driver."""

    def extend(self, seconds_left: float | None) -> None:
        """Take a message of the driver."""
        if seconds_left is not None and self.replied is not None:
            with self._extended:
                self._valid_until = self.replied + seconds_left
                self._extended.notify_all()

    def __call__(self) -> None:
        """Raise LeaseLost if another run has taken a local output over."""
        if self._on_s3:
            with self._extended:  # for ever, where the run has ended: this process ends with it
                self._extended.wait_for(lambda: boot_time() < self._valid_until - self._margin)
        elif not is_holder(self._spec.settings.output, LEASE_KEY, self._spec.run):
            raise LeaseLost("another run has taken the output over")
