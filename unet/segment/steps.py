"""The steps of the pipeline as Ray Data calls them: each takes a row and returns rows, each with one chunk."""

import gc
import time
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import ray

from unet.runtime.memory import retain_freed_memory
from unet.runtime.pipeline import Row, pack, unpack
from unet.segment.chunk import TODO
from unet.segment.item import append_items, pop_items
from unet.segment.lease_guard import LeaseGuard
from unet.segment.listing import list_chunks
from unet.segment.quarantine import Quarantine
from unet.segment.run_spec import RunSpec
from unet.segment.run_store import lookup, publish
from unet.segment.segmenter import Segmenter
from unet.storage.faults import StorageError


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
    """The second step: segments a chunk, on a GPU or on one CPU."""

    def __init__(self, spec: RunSpec, model: Any) -> None:
        retain_freed_memory()
        device = "cuda" if spec.settings.gpu else "cpu"
        self.segmenter = Segmenter(spec, ray.get(model), device=device, guard=LeaseGuard(spec))
        self.quarantine = Quarantine(spec)

    def __call__(self, row: Row) -> Row:
        chunk = unpack(row)
        items = pop_items(chunk)
        self.quarantine(items, lambda part: self.segmenter.process(part, chunk))
        return pack(append_items(chunk, items))
