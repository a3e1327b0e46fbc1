"""Segments objects: fetch and decode, predict, encode and write, each in threads of its own.

Reading and writing overlap the forward passes, and decoded pixels never leave the process. Memory is bounded by bytes
before an object is fetched, and by pixels before it is decoded. Whatever happens to one object becomes its outcome, and
never stops the others.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import torch

from unet.data.geotiff import georeference_of
from unet.data.image import ImageError, TooLargeError, open_image
from unet.data.planes import decoded_pixels, read_array
from unet.model.artifact import Model
from unet.model.predictor import Prediction, Predictor
from unet.runtime.semaphore import WeightedSemaphore
from unet.segment.item import Item, Outcome
from unet.segment.lease import LeaseLost
from unet.segment.run_spec import RunSpec
from unet.segment.writer import Source, Writer
from unet.storage.faults import (
    Archived,
    BadCredentials,
    Changed,
    Damaged,
    Denied,
    Full,
    NoSuchFolder,
    StorageError,
    Vanished,
)
from unet.storage.objects import Guard, no_guard

IO_THREADS = 16
"""Requests at a time, of reading and of writing each."""

GPU_THREADS = 4
"""Batches at a time of a worker with a GPU: it computes one, while the others are resized, copied or come back."""

MAX_ENCODED_BYTES, MAX_DECODED_PIXELS = 1 << 28, 1 << 26
"""Bytes of files being read, and pixels from before they are decoded until their mask is written, at most. A larger
image goes alone."""

SHARED_FAULTS = (BadCredentials, Full, LeaseLost)
"""Faults that every other object meets as well: they end the run."""


@dataclass(eq=False)
class _Work:
    """An object on its way."""

    item: Item
    started: float = 0.0
    future: "Future[Outcome]" = field(default_factory=Future)
    pixels: int = 0
    """Acquired of the budget."""
    source: Source | None = None
    prediction: Prediction | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)


class Segmenter:
    """Segments on one device. `guard` is called before each attempt to write, and waits until this run may write.

    `writer`: takes each object with its image and its prediction, in place of a `Writer`."""

    def __init__(
        self,
        spec: RunSpec,
        model: Model,
        *,
        device: str = "cpu",
        guard: Guard = no_guard,
        writer: Callable[[Item, Source, Prediction], Outcome] | None = None,
    ) -> None:
        self.settings = settings = spec.settings
        self.predictor = Predictor(
            model, device=device, precision=settings.precision, tile=settings.tile, tta=settings.tta
        )
        self.batch_size = settings.batch_size or self.predictor.default_batch_size
        self.input, self.channels = spec.input_store, spec.channels
        self.writer = writer or Writer(spec, model, guard)
        self.bytes, self.pixels = WeightedSemaphore(MAX_ENCODED_BYTES), WeightedSemaphore(MAX_DECODED_PIXELS)
        self._reading, self._writing = ThreadPoolExecutor(IO_THREADS), ThreadPoolExecutor(IO_THREADS)
        self._decoded: list[_Work] = []
        self._has_decoded = threading.Condition()
        # Forward passes have threads of their own: PyTorch keeps a pool of threads for each thread that calls it.
        for _ in range(GPU_THREADS if self.predictor.device.type == "cuda" else 1):
            threading.Thread(target=self._predict_all, daemon=True).start()

    def submit(self, item: Item) -> "Future[Outcome]":
        """Begin with an object. The future raises a fault that ends the run."""
        work = _Work(item)
        self._reading.submit(self._attempt, self._read, work)
        return work.future

    def _attempt(self, stage: Callable[[_Work], object], work: _Work) -> None:
        """Take `work` through a stage; what it raises is what becomes of the object."""
        try:
            stage(work)
        except SHARED_FAULTS as error:
            self.pixels.release(work.pixels)
            work.future.set_exception(error)
        except Exception as error:  # the outcome names it
            self._exit_if_device_is_lost()
            self._end(work, failure(error))

    def _exit_if_device_is_lost(self) -> None:
        """After some faults every use of a GPU fails until the process ends; another worker takes its place."""
        if self.predictor.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(1)

    def _end(self, work: _Work, outcome: Outcome) -> None:
        self.pixels.release(work.pixels)
        work.source = work.prediction = None
        outcome.seconds, outcome.stage_seconds = time.monotonic() - work.started, work.stage_seconds
        work.future.set_result(outcome)

    def _read(self, work: _Work) -> None:
        item, work.started = work.item, time.monotonic()
        with self.bytes.hold(item.size):
            began = time.monotonic()
            try:
                data = self.input.get(item.key, item.etag)
            except Vanished:
                self._end(work, Outcome("vanished", "was deleted after it was listed"))
                return
            except Changed:
                self._end(work, Outcome("changed", "was replaced after it was listed; the next run takes it"))
                return
            picture = open_image(data, max_pixels=self.settings.max_pixels)
            work.stage_seconds["fetch"] = time.monotonic() - began
            pixels = decoded_pixels(picture, self.channels)
            self.pixels.acquire(pixels)
            work.pixels, began = pixels, time.monotonic()
            georeference = georeference_of(picture)
            work.source = Source(*read_array(picture, self.channels), georeference)
            work.stage_seconds["decode"] = time.monotonic() - began
        with self._has_decoded:
            self._decoded.append(work)
            self._has_decoded.notify()

    def _predict_all(self) -> None:
        torch.set_num_threads(1)
        while True:
            batch = self._next_batch()
            if len(batch) > 1:
                try:
                    self._predict(*batch)
                except Exception:  # of one of them, which is found by itself
                    for work in batch:
                        self._attempt(self._predict, work)
            else:
                self._attempt(self._predict, batch[0])

    def _next_batch(self) -> list[_Work]:
        """Return what has been decoded by now and shares a batch with the first, at least one image. To wait for a
        whole batch could be for ever: its pixels may be those that the next image waits for."""
        with self._has_decoded:
            self._has_decoded.wait_for(lambda: self._decoded)
            first = self._input_size(self._decoded[0])
            alike = (work for work in self._decoded if self._input_size(work) == first)
            batch = list(islice(alike, self.batch_size))
            for work in batch:
                self._decoded.remove(work)
            return batch

    def _input_size(self, work: _Work) -> tuple[int, int]:
        assert work.source is not None
        return self.predictor.input_size(work.source.image.shape[:2])

    def _predict(self, *batch: _Work) -> None:
        began = time.monotonic()
        images = [work.source.image for work in batch if work.source is not None]
        results = self.predictor.predict_many(images, self.batch_size, confidence=True)
        for work, result in zip(batch, results, strict=True):
            work.stage_seconds["predict"] = (time.monotonic() - began) / len(batch)
            if isinstance(result, MemoryError):
                self._end(work, failure(result))
            else:
                work.prediction = result
                self._writing.submit(self._attempt, self._write, work)

    def _write(self, work: _Work) -> None:
        assert work.source is not None
        assert work.prediction is not None
        began = time.monotonic()
        outcome = self.writer(work.item, work.source, work.prediction)
        work.stage_seconds["write"] = time.monotonic() - began
        self._end(work, outcome)


def failure(error: Exception) -> Outcome:
    """Return the outcome of an object whose processing raised `error`."""
    if isinstance(error, TooLargeError):
        return Outcome("failed", f"{error}; lower --max-pixels, or add memory")
    if isinstance(error, ImageError):
        return Outcome("failed", str(error), permanent=True)
    if isinstance(error, StorageError):
        fault = "denied" if isinstance(error, Denied | NoSuchFolder) else "unreachable"
        own = isinstance(error, Archived | Changed | Damaged | Vanished)
        return Outcome("failed", str(error), fault=None if own else fault)
    text = " ".join(str(error).split())
    return Outcome("failed", text if isinstance(error, MemoryError) and text else f"{type(error).__name__}: {text}")
