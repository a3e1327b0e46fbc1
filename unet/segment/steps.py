"""The steps of the segmentation pipeline as Ray Data calls them.

A step takes a row and gives rows, each with one chunk. What a run's processes tell one another beside that, how
far they are, goes through Ray's key-value store.
"""

import gc
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

import pyarrow.compute as pc
import ray
from ray.experimental import internal_kv

from unet.runtime.memory import retain_freed_memory
from unet.runtime.pipeline import Row, pack, unpack
from unet.segment.lease import Lease, LeaseLost, LeaseUnconfirmed, holds, now
from unet.segment.listing import LEASE, TODO, Chunk, Request, chunks
from unet.segment.quarantine import Quarantine
from unet.segment.segmenter import (
    GPU_BATCH,
    IO_THREADS,
    Fetcher,
    Item,
    Segmenter,
    Writer,
    by_shape,
    make_predictor,
    predict,
    put_items,
    take_items,
)
from unet.storage.faults import StorageError
from unet.storage.listed import join

IN_FLIGHT_SECONDS = 15.0
"""What is left of a lease must exceed this (or a quarter of a short one) for a write to begin, which takes a while."""

SLICE_BYTES = 8 << 20
"""Bytes of encoded images that go from CPUs to GPUs together; decoded they are about ten times as much."""


class List:
    """The first step: lists, and leaves out what is done."""

    def __init__(self, request: Request, ahead: int) -> None:
        self.request, self.ahead = request, ahead

    def __call__(self, _: Row) -> Iterator[Row]:
        if lookup(self.request, "listed", None) is not None:
            # Ray begins anew where a process dies. What is listed would not be the same again, and rows would be lost.
            # The driver may not hear of this error, but it sees that the listing has not ended.
            raise StorageError(self.request.settings.input, "the process that lists it was killed")
        publish(self.request, "listed", [0, False])
        gc.freeze()  # what is loaded by now; going through it again and again would take half of a listing's time
        listed = todo = 0
        for chunk in chunks(self.request, LeaseGuard(self.request)):
            listed += len(chunk.rows)
            todo += pc.sum(pc.equal(chunk.rows["status"], TODO)).as_py() or 0
            publish(self.request, "listed", [listed, False])
            yield pack(chunk)
            while todo - lookup(self.request, "worked", 0) > self.ahead:
                time.sleep(0.2)
        publish(self.request, "listed", [listed, True])


class Segment:
    """All that is left, in one process: fetch, decode, predict, encode, write."""

    def __init__(self, request: Request, model: Any) -> None:
        retain_freed_memory()
        self.segmenter = Segmenter(request, ray.get(model), guard=LeaseGuard(request))
        self.quarantine = quarantine(request, "segment")

    def __call__(self, row: Row) -> Row:
        chunk = unpack(row)
        items = take_items(chunk)
        self.quarantine(items, lambda some: self.segmenter.settle(some, chunk))
        return pack(put_items(chunk, items))


class Fetch:
    """Fetch and decode, on CPUs that feed GPUs."""

    def __init__(self, request: Request) -> None:
        self.fetch, self.threads = Fetcher(request), ThreadPoolExecutor(IO_THREADS)
        self.quarantine = quarantine(request, "fetch")

    def __call__(self, row: Row) -> Iterator[Row]:
        chunk = unpack(row)
        for items in _slices(take_items(chunk)) or [[]]:
            self.quarantine(items, lambda some: [*self.threads.map(self.fetch, some)])
            yield pack((chunk, items))
            chunk = Chunk(chunk.rows.slice(0, 0))


class Predict:
    """Predict, on a GPU."""

    def __init__(self, request: Request, model: Any, device: str = "cuda") -> None:
        self.settings, self.predictor = request.settings, make_predictor(request, ray.get(model), device)
        self.quarantine = quarantine(request, "predict")
        self.lock = threading.Lock()

    def __call__(self, row: Row) -> Row:
        chunk, items = unpack(row)
        with self.lock:  # the memory of a GPU is not shared
            self.quarantine(items, self._predict)
        return pack((chunk, items))

    def _predict(self, items: list[Item]) -> None:
        for batch in by_shape(items, self.predictor, self.settings.batch_size or GPU_BATCH):
            predict(batch, self.predictor, confidence="confidence" in self.settings.outputs)


class Write:
    """Encode and write, on CPUs."""

    def __init__(self, request: Request, model: Any) -> None:
        self.write = Writer(request, ray.get(model), LeaseGuard(request))
        self.threads = ThreadPoolExecutor(IO_THREADS)
        self.quarantine = quarantine(request, "write")

    def __call__(self, row: Row) -> Row:
        chunk, items = unpack(row)
        self.quarantine(items, lambda some: [*self.threads.map(lambda item: self.write(item, chunk), some)])
        return pack(put_items(chunk, items))


class LeaseGuard:
    """Called before a write: returns once it is sure that this run still holds its output.

    The clocks of machines are not compared. Announcements are made one after the other: what is new in one was found
    out after the one before had arrived, which was after the look before that was first seen. There is no thread that
    listens: it would be in the middle of a call when its process ends.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._remote = request.settings.output.startswith("s3://")
        self._lifetime = request.settings.lease
        self._until, self._looked = 0.0, now()
        self._since: float | None = None
        """The look before the last announcement was first seen."""
        self._heard: Any = lookup(request, "lease", None) if self._remote else None
        self._lock = threading.Lock()

    def __call__(self) -> None:
        if not self._remote:
            if not holds(self._request.settings.output, LEASE, self._request.run):
                raise LeaseLost("another run has taken the output over")
            return
        with self._lock:
            if now() - self._looked > publish_interval(self._lifetime):
                self._look()
            while now() >= self._until - min(IN_FLIGHT_SECONDS, self._lifetime / 4):
                if self._heard is not None and self._heard["trouble"]:
                    raise LeaseUnconfirmed(join(self._request.settings.output, LEASE), self._heard["trouble"])
                if not threading.main_thread().is_alive():
                    raise LeaseLost("the run has ended")
                time.sleep(publish_interval(self._lifetime) / 2)
                self._look()

    def _look(self) -> None:
        looking = now()
        said = lookup(self._request, "lease", None)
        if said != self._heard:
            if self._since is not None:
                self._until = self._since + said["left"]
            self._heard, self._since = said, self._looked
        self._looked = looking


@contextmanager
def publish_lease(request: Request, lease: Lease) -> Iterator[None]:
    """Lets the workers know for how many seconds the lease is sure, again and again; then takes back all that the
    processes of the run told one another."""
    over = threading.Event()

    def announce() -> None:
        numbers = count()
        while True:
            ended = over.wait(publish_interval(request.settings.lease))
            left = 0.0 if ended else lease.left()
            with suppress(ray.exceptions.RayError):  # then they hear nothing, and wait
                publish(request, "lease", {"number": next(numbers), "left": left, "trouble": lease.trouble()})
            if ended:
                return

    thread = threading.Thread(target=announce, daemon=True)
    if request.settings.output.startswith("s3://"):
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
        internal_kv._internal_kv_del(_place(request, ""), del_by_prefix=True)


def publish_interval(lifetime: float) -> float:
    """Seconds between two messages about a lease with this lifetime."""
    return min(0.5, lifetime / 10)


def quarantine(request: Request, step: str) -> Quarantine:
    """The quarantine of a step, which survive its workers."""
    return Quarantine(step, partial(publish, request), lambda name: lookup(request, name, None))


def _slices(items: list[Item]) -> list[list[Item]]:
    """`items` in pieces whose decoded images are small enough to travel together."""
    slices: list[list[Item]] = []
    room = 0
    for item in items:
        if not slices or item.size > room:
            slices.append([])
            room = SLICE_BYTES
        slices[-1].append(item)
        room -= item.size
    return slices


def publish(request: Request, what: str, value: Any) -> None:
    """Tells the other processes of the run; None: takes it back."""
    if value is None:
        internal_kv._internal_kv_del(_place(request, what))
        return
    internal_kv._internal_kv_put(_place(request, what), json.dumps(value))


def lookup(request: Request, what: str, default: Any) -> Any:
    """What was last told in the run; `default` if nothing was."""
    told = internal_kv._internal_kv_get(_place(request, what))
    return json.loads(told) if told else default


def _place(request: Request, what: str) -> str:
    return f"unet/{request.run}/{what}"
