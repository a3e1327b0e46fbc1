"""Batches for training, made by Ray Data: read, decoded, oriented and augmented, in the order asked for.

All batches that a worker still needs come from one plan. Its first step cuts their requests into chunks: a few small
batches, or a part of a large one. Its second makes each chunk, in processes that stay: Ray ends those of tasks that are
idle for a second while training holds all CPUs. No more chunks are cut than fit into a number of bytes until their
batches are used. A faulty file becomes the text of a chunk, which ends the run naming the file.
"""

import logging
import math
import pickle
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data

from unet.data.image import ImageError
from unet.runtime.stop import skip_destructors
from unet.settings import RequestError
from unet.train.examples import Batch, BatchRequest, BatchSpec, make_batch

CHUNK_BYTES, CHUNK_IMAGES = 8 << 20, 32
"""What a chunk has at most, or a single image: a task takes as long to start as a few images to make."""

AHEAD_BYTES = 256 << 20
"""Of batches that are under way or wait for training, at most."""

AHEAD_CHUNKS = 64
"""Of chunks that hold them, at most: Ray keeps a few kB of each."""

FIRST_SHARE = 16
"""This part of them before any is used, and as much more as is: the first step, which takes three times as long as any
other, does not share its processors with the making of batches that wait."""

STORE_SHARE = 8
"""They are no more than this part of the object store, shared by all workers: Ray copies a chunk twice."""

Row = dict[str, npt.NDArray[Any]]
"""A chunk on its way: `chunk` [1, bytes], pickled, and `end` [1], the bytes of the stream up to its end."""


class BatchStream:
    """Makes batches for one of `workers`, in up to `processes`, of which the first starts at once.

    They are on this machine, on what training leaves of its processors; or `anywhere`, on a CPU of their own each.
    """

    def __init__(self, spec: BatchSpec, *, processes: int, workers: int = 1, anywhere: bool = False) -> None:
        object_store = ray.cluster_resources().get("object_store_memory", math.inf)
        limit = min(AHEAD_BYTES, int(object_store / STORE_SHARE / workers))
        here: dict[str, Any] = {
            "num_cpus": 0,
            "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        }
        actor: Any = ray.remote(_BatchActor)
        options = {"num_cpus": 1} if anywhere else here
        self._actor = actor.options(max_concurrency=2, **here).remote(spec, processes, limit, options)

    def batches(self, requests: Iterable[BatchRequest]) -> Iterator[Batch]:
        """Yield the batches of `requests`, in their order. `requests` can be pickled, and iterated more than once.

        Raises:
            RequestError: a file that cannot be used; names it.
        """
        streamed = self._actor.chunks.options(num_returns="streaming", _generator_backpressure_num_objects=1)
        parts = _parts(streamed.remote(requests))
        for request in requests:
            own = [next(parts)]
            while sum(len(part.images) for part in own) < len(request.pairs):
                own.append(next(parts))
            yield own[0] if len(own) == 1 else _concatenate(own)


def _parts(chunks: Iterable[Any]) -> Iterator[Batch]:
    """Yield the batches, and the parts of batches, in `chunks`: references to what `_MakeChunk` returns."""
    for chunk in chunks:
        made = pickle.loads(ray.get(chunk))
        if isinstance(made, str):
            raise RequestError(made)
        yield from made
    raise RuntimeError("the stream of batches ended before the last step")


def _concatenate(parts: list[Batch]) -> Batch:
    images, masks = (
        np.concatenate(arrays) for arrays in zip(*((part.images, part.masks) for part in parts), strict=True)
    )
    return Batch(images, masks, tuple(holes for part in parts for holes in part.holes))


class _BatchActor:
    """Runs the plan, in a process of its own: Ray's executor would take much of a processor, and Python's lock, from
    the process that trains."""

    def __init__(self, spec: BatchSpec, processes: int, limit: int, options: dict[str, Any]) -> None:
        skip_destructors()
        self._spec, self._processes, self._limit, self._options = spec, processes, limit, options
        self._used = 0
        self._changed = threading.Condition()

    def chunks(self, requests: Iterable[BatchRequest]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield each chunk, pickled, in order. Not a reference to it: an owner keeps 15 kB of each that it lends."""
        options = ray.data.DataContext.get_current()
        options.target_max_block_size = 1  # a row is a block
        # Chunks that a task has cut and Ray has not taken yet: with its own two, no more than three tasks are busy.
        options._max_num_blocks_in_streaming_gen_buffer = AHEAD_CHUNKS
        options.enable_progress_bars = options.print_on_execution_start = False
        options.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it says that progress bars are off
        me = ray.get_runtime_context().current_actor
        cut = _CutChunks(requests, self._spec, self._limit // AHEAD_CHUNKS, me)
        # Not from_arrow, which runs a task of one CPU for each table and would wait for one for ever.
        cuts = ray.data.from_items([None]).map_batches(cut, compute=ray.data.TaskPoolStrategy(1), num_cpus=0)
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=self._processes)
        made = cuts.map_batches(_MakeChunk, fn_constructor_args=(self._spec,), compute=pool, **self._options)
        for row in made.iter_batches(batch_size=None, prefetch_batches=0):
            yield row["chunk"][0]
            with self._changed:
                self._used = int(row["end"][0])
                self._changed.notify_all()

    def admit(self, begin: int, end: int) -> None:
        """Wait until bytes `begin` to `end` of the stream may be under way: the next of all, or few enough."""
        with self._changed:
            self._changed.wait_for(lambda: begin <= self._used or end <= _admitted(self._used, self._limit))


def _admitted(used: int, limit: int) -> int:
    """Return up to which byte of the stream chunks may be under way, of which `used` were taken."""
    return used + min(limit, limit // FIRST_SHARE + used)


class _CutChunks:
    """Cuts the requests into chunks: lists of requests for batches, and for parts of batches."""

    def __init__(self, requests: Iterable[BatchRequest], spec: BatchSpec, least: int, actor: Any) -> None:
        self._requests, self._spec, self._least, self._actor = requests, spec, least, actor

    def __call__(self, _: Row) -> Iterator[Row]:
        begin = 0
        for chunk in cut_chunks(self._requests, self._spec):
            end = begin + max(self._least, sum(map(self._spec.bytes_of, chunk)))
            ray.get(self._actor.admit.remote(begin, end))
            yield {"chunk": _pickled(chunk), "end": np.array([end])}
            begin = end


def cut_chunks(requests: Iterable[BatchRequest], spec: BatchSpec) -> Iterator[list[BatchRequest]]:
    """Yield the parts of `requests`, in order, in chunks of CHUNK_BYTES and CHUNK_IMAGES at most, or of one image."""
    chunk, size, images = list[BatchRequest](), 0, 0
    for request in requests:
        most = max(1, len(request.pairs) * CHUNK_BYTES // max(1, spec.bytes_of(request)))
        for first in range(0, len(request.pairs), most):
            part = request.part(first, first + most)
            if chunk and (size + spec.bytes_of(part) > CHUNK_BYTES or images + len(part.pairs) > CHUNK_IMAGES):
                yield chunk
                chunk, size, images = [], 0, 0
            chunk.append(part)
            size, images = size + spec.bytes_of(part), images + len(part.pairs)
    if chunk:
        yield chunk


class _MakeChunk:
    """`make_batch` of each request of a chunk; the text of a fault instead of all, if there is one."""

    def __init__(self, spec: BatchSpec) -> None:
        self._spec = spec

    def __call__(self, row: Row) -> Row:
        made: list[Batch] | str
        try:
            made = [make_batch(request, self._spec) for request in pickle.loads(row["chunk"][0])]
        except ImageError as error:
            made = str(error)
        return {"chunk": _pickled(made), "end": row["end"]}


def _pickled(value: Any) -> npt.NDArray[np.uint8]:
    """Return `value` pickled, [1, bytes]."""
    return np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)[None]
