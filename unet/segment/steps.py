"""The steps of the pipeline as Ray Data calls them: each takes a row and returns rows, each with one chunk."""

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.compute as pc
import ray

from unet.runtime.memory import retain_freed_memory
from unet.runtime.pipeline import Row, pack, unpack
from unet.segment.chunk import TODO, Chunk
from unet.segment.item import Item, append_items, pop_items
from unet.segment.lease_guard import LeaseGuard
from unet.segment.listing import list_chunks
from unet.segment.quarantine import Quarantine
from unet.segment.run_spec import RunSpec
from unet.segment.run_store import lookup, publish
from unet.segment.segmenter import IO_THREADS, Fetcher, Segmenter, Writer, make_predictor, predict
from unet.storage.faults import StorageError

BATCH_BYTES = 8 << 20
"""Bytes of encoded images that go from CPUs to GPUs together; decoded they are about ten times as much."""


class List:
    """The first step: lists the input."""

    def __init__(self, spec: RunSpec, lookahead: int) -> None:
        """`lookahead`: objects to segment that are listed before the first of them is done."""
        self.spec, self.lookahead = spec, lookahead

    def __call__(self, _: Row) -> Iterator[Row]:
        if lookup(self.spec, "listed") is not None:
            # Ray starts a step again whose process has died. A second listing could differ from the first, and rows
            # would be lost. Ray may not pass this error on, but the driver sees that the listing has not ended.
            raise StorageError(self.spec.settings.input, "the process that lists it was killed")
        publish(self.spec, "listed", [0, False])
        gc.freeze()  # collections would go through all loaded modules, which takes half the time of a listing
        listed = todo = 0
        for chunk in list_chunks(self.spec, LeaseGuard(self.spec)):
            listed += len(chunk.rows)
            todo += pc.sum(pc.equal(chunk.rows["status"], TODO)).as_py() or 0
            publish(self.spec, "listed", [listed, False])
            yield pack(chunk)
            while todo - lookup(self.spec, "processed", 0) > self.lookahead:
                time.sleep(0.2)
        publish(self.spec, "listed", [listed, True])


class Segment:
    """All other steps in one process, on CPUs."""

    def __init__(self, spec: RunSpec, model: Any) -> None:
        retain_freed_memory()
        self.segmenter = Segmenter(spec, ray.get(model), guard=LeaseGuard(spec))
        self.quarantine = Quarantine(spec, "segment")

    def __call__(self, row: Row) -> Row:
        chunk = unpack(row)
        items = pop_items(chunk)
        self.quarantine(items, lambda part: self.segmenter.process(part, chunk))
        return pack(append_items(chunk, items))


class Fetch:
    """Fetches and decodes, on CPUs that feed GPUs."""

    def __init__(self, spec: RunSpec) -> None:
        self.fetch, self.threads = Fetcher(spec), ThreadPoolExecutor(IO_THREADS)
        self.quarantine = Quarantine(spec, "fetch")

    def __call__(self, row: Row) -> Iterator[Row]:
        chunk = unpack(row)
        for items in _batches(pop_items(chunk)) or [[]]:
            self.quarantine(items, lambda part: [*self.threads.map(self.fetch, part)])
            yield pack((chunk, items))
            chunk = Chunk(chunk.rows.slice(0, 0))


class Predict:
    """Predicts, on a GPU."""

    def __init__(self, spec: RunSpec, model: Any, device: str = "cuda") -> None:
        self.settings, self.predictor = spec.settings, make_predictor(spec, ray.get(model), device)
        self.quarantine = Quarantine(spec, "predict")
        self.lock = threading.Lock()

    def __call__(self, row: Row) -> Row:
        chunk, items = unpack(row)
        with self.lock:  # two batches at a time may be too much for the memory of the GPU
            self.quarantine(items, self._predict)
        return pack((chunk, items))

    def _predict(self, items: list[Item]) -> None:
        confidence = "confidence" in self.settings.outputs
        predict(items, self.predictor, self.settings.batch_size, confidence=confidence)


class Write:
    """Encodes and writes, on CPUs."""

    def __init__(self, spec: RunSpec, model: Any) -> None:
        self.write = Writer(spec, ray.get(model), LeaseGuard(spec))
        self.threads = ThreadPoolExecutor(IO_THREADS)
        self.quarantine = Quarantine(spec, "write")

    def __call__(self, row: Row) -> Row:
        chunk, items = unpack(row)
        self.quarantine(items, lambda part: [*self.threads.map(lambda item: self.write(item, chunk), part)])
        return pack(append_items(chunk, items))


def _batches(items: list[Item]) -> list[list[Item]]:
    """Return `items` in batches of BATCH_BYTES at most; a larger item is a batch of its own."""
    batches: list[list[Item]] = []
    room = 0
    for item in items:
        if not batches or item.size > room:
            batches.append([])
            room = BATCH_BYTES
        batches[-1].append(item)
        room -= item.size
    return batches
