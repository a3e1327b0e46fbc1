"""The steps of the segmentation pipeline as Ray Data calls them, and how a chunk travels between them.

A step takes a row and gives rows, each with one pickled chunk. What a run's processes tell one another beside that, how
far they are, goes through Ray's key-value store.
"""

import gc
import json
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray
from ray.experimental import internal_kv

from unet.listing import TODO, Chunk, Request, chunks
from unet.memory import keep_freed_memory
from unet.segmenter import (
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

SLICE_BYTES = 8 << 20
"""Bytes of encoded images that go from CPUs to GPUs together; decoded they are about ten times as much."""

Row = dict[str, Any]


def packed(chunk: Any) -> Row:
    """What travels, as the one row that Ray Data sees."""
    return {"chunk": np.array([pickle.dumps(chunk, protocol=5)], object)}


def unpacked(row: Row) -> Any:
    """The inverse of `packed`."""
    return pickle.loads(row["chunk"][0])


class List:
    """The first step: lists, and leaves out what is done."""

    def __init__(self, request: Request, ahead: int) -> None:
        self.request, self.ahead = request, ahead

    def __call__(self, _: Row) -> Iterator[Row]:
        gc.freeze()  # what is loaded by now; going through it again and again would take half of a listing's time
        listed = todo = 0
        for chunk in chunks(self.request):
            listed += len(chunk.rows)
            todo += pc.sum(pc.equal(chunk.rows["status"], TODO)).as_py() or 0
            tell(self.request, "listed", [listed, False])
            yield packed(chunk)
            while todo - told(self.request, "worked", 0) > self.ahead:
                time.sleep(0.2)
        tell(self.request, "listed", [listed, True])


class Segment:
    """All that is left, in one process: fetch, decode, predict, encode, write."""

    def __init__(self, request: Request, model: Any) -> None:
        keep_freed_memory()
        self.segmenter = Segmenter(request, ray.get(model))

    def __call__(self, row: Row) -> Row:
        return packed(self.segmenter(unpacked(row)))


class Fetch:
    """Fetch and decode, on CPUs that feed GPUs."""

    def __init__(self, request: Request) -> None:
        self.fetch, self.threads = Fetcher(request), ThreadPoolExecutor(IO_THREADS)

    def __call__(self, row: Row) -> Iterator[Row]:
        chunk = unpacked(row)
        for items in _slices(take_items(chunk)) or [[]]:
            yield packed((chunk, list(self.threads.map(self.fetch, items))))
            chunk = Chunk(chunk.rows.slice(0, 0))


class Predict:
    """Predict, on a GPU."""

    def __init__(self, request: Request, model: Any, device: str = "cuda") -> None:
        self.settings, self.predictor = request.settings, make_predictor(request, ray.get(model), device)

    def __call__(self, row: Row) -> Row:
        chunk, items = unpacked(row)
        for batch in by_shape(items, self.predictor, self.settings.batch_size or GPU_BATCH):
            predict(batch, self.predictor, confidence="confidence" in self.settings.outputs)
        return packed((chunk, items))


class Write:
    """Encode and write, on CPUs."""

    def __init__(self, request: Request, model: Any) -> None:
        self.write, self.threads = Writer(request, ray.get(model)), ThreadPoolExecutor(IO_THREADS)

    def __call__(self, row: Row) -> Row:
        chunk, items = unpacked(row)
        list(self.threads.map(lambda item: self.write(item, chunk), [item for item in items if not item.status]))
        return packed(put_items(chunk, items))


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


def tell(request: Request, what: str, value: Any) -> None:
    """Tells the other processes of the run."""
    internal_kv._internal_kv_put(f"unet/{request.run}/{what}", json.dumps(value))


def told(request: Request, what: str, default: Any) -> Any:
    """What was last told in the run; `default` if nothing was."""
    told = internal_kv._internal_kv_get(f"unet/{request.run}/{what}")
    return json.loads(told) if told else default
