"""Segments the objects of a chunk: fetch and decode, predict, encode and write, each in threads of its own.

Reading and writing overlap the forward passes, and decoded pixels never leave the process. An object that cannot be
segmented becomes a row with a reason, and never stops the others.
"""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import torch

from unet.data.image import (
    Array,
    ImageError,
    TooLargeError,
    encode_image,
    encode_mask,
    open_image,
    overlay,
    resize_image,
    resize_mask,
    size_within,
    to_rgb_array,
)
from unet.model.artifact import Model
from unet.model.predictor import Predictor
from unet.segment.chunk import Chunk
from unet.segment.item import Item, append_items, pop_items
from unet.segment.lease import LeaseUnconfirmed
from unet.segment.ledger import NEW, hash64
from unet.segment.listing import TODO_REASONS
from unet.segment.run_spec import RunSpec, output_keys
from unet.segment.semaphore import WeightedSemaphore
from unet.storage.faults import BadCredentials, Changed, Full, StorageError, Vanished
from unet.storage.objects import Guard, no_guard

IO_THREADS = 16
"""Requests at a time, of reading and of writing each."""

MAX_DECODED_PIXELS = 1 << 26
"""Decoded pixels that wait for their forward pass, at most (a larger image waits alone)."""

THUMBNAILS, THUMBNAIL_SIDE = 24, 320
"""Images of the contact sheet, and their longest side in pixels."""

MASK_ATTEMPTS = 3
"""Attempts to write a mask where another object is than the one that was seen."""

SHARED_FAULTS = (BadCredentials, Full, LeaseUnconfirmed)
"""Faults that every other object would meet as well: they end the run."""


class Fetcher:
    """Fetches and decodes. `pixels` is acquired for each image that is returned."""

    def __init__(self, spec: RunSpec, pixels: WeightedSemaphore) -> None:
        self.settings, self.input, self.window = spec.settings, spec.input_store, spec.window
        self.pixels = pixels

    def __call__(self, item: Item) -> Item:
        """Return `item` with its image, or settled."""
        item.started = time.time()
        try:
            data = self.input.get(item.key, item.etag)
            picture = open_image(data, max_pixels=self.settings.max_pixels)
            count = picture.height * picture.width
            item.stage_seconds["fetch"] = time.time() - item.started
            self.pixels.acquire(count)
            started = time.time()
            try:
                item.image = to_rgb_array(picture, self.window)
                item.stage_seconds["decode"] = time.time() - started
            finally:
                if item.image is None:
                    self.pixels.release(count)
        except Vanished:
            return item.settle("vanished", "was deleted after it was listed")
        except Changed:
            return item.settle("changed", "was replaced after it was listed; the next run takes it")
        except TooLargeError as error:
            return item.settle("failed", f"{error}; lower --max-pixels, or add memory")
        except ImageError as error:
            return item.settle("failed", str(error), permanent=True)
        except SHARED_FAULTS:
            raise
        except StorageError as error:
            return item.settle("failed", str(error))
        return item


class Writer:
    """Encodes and writes. `guard` is called before each attempt to write, and waits until this run may write."""

    def __init__(self, spec: RunSpec, model: Model, guard: Guard = no_guard) -> None:
        self.settings, self.labels, self.digest = spec.settings, model.labels, model.digest
        self.output, self.conditional, self.guard = spec.output_store, spec.conditional, guard
        self._lock = threading.Lock()
        self._lowest_ranks: list[int] = []
        """Of the thumbnails so far. Ranks are hashes, so that the images of the lowest are a random sample."""

    def __call__(self, item: Item, chunk: Chunk) -> Item:
        """Return `item`, settled. Add its class pixels, and its thumbnail if it has one, to `chunk`."""
        image, mask = item.image, item.mask
        assert image is not None
        assert mask is not None
        started = time.time()
        metadata = {"model-digest": self.digest, "image-etag": item.etag}
        pixels = np.bincount(mask.reshape(-1), minlength=len(self.labels.classes))
        try:
            for key, kind in zip(output_keys(item.key, self.settings.outputs), self.settings.outputs, strict=True):
                data = self._encode(kind, image, mask, item.confidence)
                if kind == "mask":
                    item.mask_etag = self._put_mask(key, data, metadata, new=item.reason == TODO_REASONS[NEW])
                else:
                    self.output.put(key, data, metadata=metadata, guard=self.guard)
        except SHARED_FAULTS:
            raise
        except StorageError as error:
            return item.settle("failed", str(error))
        item.stage_seconds["write"] = time.time() - started
        thumbnails = self._thumbnails(item, image, mask)
        with self._lock:
            chunk.class_pixels = pixels if chunk.class_pixels is None else chunk.class_pixels + pixels
            chunk.thumbnails += thumbnails
        return item.settle("done")

    def _put_mask(self, key: str, data: bytes, metadata: Mapping[str, str], *, new: bool) -> str:
        """Write a mask over the one that is seen there, and never over one that another run writes in between.

        `new`: the image is new, so none is expected there, and the first attempt is made without a look.
        """
        expected_etag = "" if new or not self.conditional else self._etag_of(key)
        for _ in range(MASK_ATTEMPTS):
            try:
                return self.output.put(
                    key,
                    data,
                    metadata=metadata,
                    expected_etag=expected_etag if self.conditional else None,
                    guard=self.guard,
                )
            except Changed:  # by an earlier run that did not record it, or by the lost first attempt of this write
                expected_etag = self._etag_of(key)
        raise Changed(key, "is written by another program at the same time")

    def _etag_of(self, key: str) -> str:
        try:
            return self.output.head(key).etag
        except Vanished:
            return ""

    def _encode(self, kind: str, image: Array, mask: Array, confidence: Array | None) -> bytes:
        if kind == "mask":
            return encode_mask(mask, self.labels)
        if kind == "overlay":
            return encode_image(overlay(image, mask, self.labels))
        assert confidence is not None
        return encode_image(confidence)

    def _thumbnails(self, item: Item, image: Array, mask: Array) -> list[tuple[int, str, bytes]]:
        """Return rank, key and overlay (JPEG) if the rank is among the lowest so far; else nothing."""
        rank = hash64(item.key, item.etag)
        with self._lock:
            self._lowest_ranks = sorted([*self._lowest_ranks, rank])[:THUMBNAILS]
            if rank not in self._lowest_ranks:
                return []
        height, width = mask.shape
        size = size_within(THUMBNAIL_SIDE, (height, width))
        picture = overlay(resize_image(image, size), resize_mask(mask, size), self.labels)
        return [(rank, item.key, encode_image(picture, "JPEG"))]


class Segmenter:
    """All steps on one device. Where it is called from several threads, their chunks overlap."""

    def __init__(self, spec: RunSpec, model: Model, *, device: str = "cpu", guard: Guard = no_guard) -> None:
        settings = spec.settings
        self.predictor = Predictor(
            model, device=device, precision=settings.precision, tile=settings.tile, tta=settings.tta
        )
        self.batch_size = settings.batch_size or self.predictor.default_batch_size
        self.confidence = "confidence" in settings.outputs
        self.pixels = WeightedSemaphore(MAX_DECODED_PIXELS)
        self.fetch, self.write = Fetcher(spec, self.pixels), Writer(spec, model, guard)
        self.reading, self.writing = ThreadPoolExecutor(IO_THREADS), ThreadPoolExecutor(IO_THREADS)
        # Forward passes have one thread of their own: PyTorch keeps a pool of threads for each thread that calls it.
        self.predicting = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, chunk: Chunk) -> Chunk:
        """Return `chunk` with all objects settled."""
        items = pop_items(chunk)
        self.process(items, chunk)
        return append_items(chunk, items)

    def process(self, items: list[Item], chunk: Chunk) -> None:
        """Settle all items; add class pixels and thumbnails to `chunk`."""
        fetched: SimpleQueue[Future[Item]] = SimpleQueue()
        for item in items:
            self.reading.submit(self.fetch, item).add_done_callback(fetched.put)
        remaining, writing = len(items), list[Future[Item]]()
        while remaining:
            batch = self._next_batch(fetched)
            remaining -= len(batch)
            writing += self.predicting.submit(self._predict, batch, chunk).result()
        for written in writing:
            written.result()

    def _next_batch(self, fetched: "SimpleQueue[Future[Item]]") -> list[Item]:
        """Return what has been fetched by now, at least one item. To wait for a whole batch could be for ever: its
        pixels may be those that the next item waits for."""
        batch = [fetched.get().result()]
        while len(batch) < self.batch_size and not fetched.empty():
            batch.append(fetched.get().result())
        return batch

    def _predict(self, items: list[Item], chunk: Chunk) -> list[Future[Item]]:
        pixels = {item.key: item.image.size // 3 for item in items if item.image is not None}
        predict(items, self.predictor, self.batch_size, confidence=self.confidence)
        return [self.writing.submit(self._write, item, pixels[item.key], chunk) for item in items if item.key in pixels]

    def _write(self, item: Item, pixels: int, chunk: Chunk) -> Item:
        try:
            return item if item.status else self.write(item, chunk)
        finally:
            self.pixels.release(pixels)


def predict(items: list[Item], predictor: Predictor, batch_size: int | None = None, *, confidence: bool) -> None:
    """Give each fetched item its mask, and its confidence if that is asked for; settle those that memory is too small
    for."""
    fetched, started = [item for item in items if item.image is not None], time.time()
    images = [item.image for item in fetched if item.image is not None]
    for item, result in zip(fetched, predictor.predict_many(images, batch_size, confidence=confidence), strict=True):
        item.stage_seconds["predict"] = (time.time() - started) / len(fetched)
        if isinstance(result, MemoryError):
            item.settle("failed", str(result))
        else:
            item.mask, item.confidence = result.mask, result.confidence
