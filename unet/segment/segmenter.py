"""The steps that make masks of a chunk of objects: fetch and decode, predict, encode and write.

`Segmenter` runs all three in one process, each in threads of its own, so that a chunk's reading hides behind another's
forward passes. `fetch`, `predict` and `write` are the same steps one by one, for clusters whose CPU nodes feed GPUs.
A bad object becomes a row with a reason; it never stops the others.
"""

import heapq
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from unet.data.image import (
    Array,
    ImageError,
    TooLargeError,
    decode_image,
    encode,
    encode_mask,
    overlay,
    resize_image,
    resize_mask,
    size_of,
)
from unet.model.artifact import Model
from unet.model.predictor import Predictor
from unet.segment.lease import LeaseUnconfirmed
from unet.segment.ledger import NEW, hash64
from unet.segment.listing import REASONS, TODO, Chunk, Request, make_rows, output_keys
from unet.storage.faults import BadCredentials, Changed, Full, StorageError, Vanished

IO_THREADS = 16
"""Requests at a time, of reading and of writing each."""

PIXELS_IN_FLIGHT = 1 << 26
"""Decoded pixels that wait for their forward pass, at most (a larger image waits alone)."""

SHEETS, SHEET_SIDE = 24, 320
"""Images of the contact sheet, and their longest side in pixels."""

OVERWRITES = 3
"""How often a mask is put over one that was not expected there."""

SHARED_FAULTS = (BadCredentials, Full, LeaseUnconfirmed)
"""Faults that no other object would be spared: they end the run."""


@dataclass
class Item:
    """An object on its way through the steps. `image` is freed after prediction unless it is shown."""

    key: str
    etag: str
    size: int
    reason: str | None = None
    """Why it is segmented."""
    began: float = field(default_factory=time.time)
    image: Array | None = None
    mask: Array | None = None
    confidence: Array | None = None
    status: str = ""
    error: str | None = None
    permanent: bool = False
    mask_etag: str | None = None
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)  # seconds by stage

    def end(self, status: str, error: str | None = None, *, permanent: bool = False) -> "Item":
        """The last word on this object."""
        self.status, self.error, self.permanent = status, error, permanent
        self.image = self.mask = self.confidence = None
        self.seconds = time.time() - self.began
        return self


class Budget:
    """Lets holders of decoded pixels in while there is room; one that is larger than all of it goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._room = threading.Condition()

    def take(self, pixels: int) -> None:
        """Waits until there is room."""
        with self._room:
            self._room.wait_for(lambda: not self._used or self._used + pixels <= self._limit)
            self._used += pixels

    def release(self, pixels: int) -> None:
        """Makes room."""
        with self._room:
            self._used -= pixels
            self._room.notify_all()


class Fetcher:
    """Fetches and decodes."""

    def __init__(self, request: Request, budget: Budget | None = None) -> None:
        self.settings = request.settings
        self.source, self.window = request.source, request.window
        self.budget = budget or Budget(1 << 62)

    def __call__(self, item: Item) -> Item:
        """`item` with its image, or ended."""
        item.began = time.time()
        try:
            data = self.source.get(item.key, item.etag)
            height, width = size_of(data, max_pixels=self.settings.max_pixels)
            item.spent["fetch"] = time.time() - item.began
            self.budget.take(height * width)
            started = time.time()
            try:
                item.image = decode_image(data, max_pixels=self.settings.max_pixels, window=self.window)
                item.spent["decode"] = time.time() - started
            finally:
                if item.image is None:
                    self.budget.release(height * width)
        except Vanished:
            return item.end("vanished", "was deleted after it was listed")
        except Changed:
            return item.end("changed", "was replaced after it was listed; the next run takes it")
        except ImageError as error:
            return item.end("failed", str(error), permanent=not isinstance(error, TooLargeError))
        except SHARED_FAULTS:
            raise
        except StorageError as error:
            return item.end("failed", str(error))
        return item


class Writer:
    """Encodes and writes; keeps count of classes and candidates for the contact sheet.

    `guard` is called before each attempt to write, and returns once this run may write.
    """

    def __init__(self, request: Request, model: Model, guard: Callable[[], None] = lambda: None) -> None:
        self.settings, self.labels, self.digest = request.settings, model.labels, model.digest
        self.target, self.conditional, self.guard = request.target, request.conditional, guard
        self._lock = threading.Lock()
        self._shown: list[int] = []
        """Ranks of the candidates so far, negated, as a heap: a random sample has the lowest ranks."""

    def __call__(self, item: Item, chunk: Chunk) -> Item:
        """`item`, ended; counts go to `chunk`."""
        assert item.image is not None
        assert item.mask is not None
        started = time.time()
        metadata = {"model-digest": self.digest, "image-etag": item.etag}
        pixels = np.bincount(item.mask.reshape(-1), minlength=len(self.labels.classes))
        try:
            for key, kind in zip(output_keys(item.key, self.settings.outputs), self.settings.outputs, strict=True):
                data = self._encode(item, kind)
                if kind == "mask":
                    item.mask_etag = self._put_mask(key, data, metadata, new=item.reason == REASONS[NEW])
                else:
                    self.target.put(key, data, content_type="image/png", metadata=metadata, guard=self.guard)
        except SHARED_FAULTS:
            raise
        except StorageError as error:
            return item.end("failed", str(error))
        item.spent["write"] = time.time() - started
        sheet = self._sheet(item)
        with self._lock:
            chunk.class_pixels = pixels if chunk.class_pixels is None else chunk.class_pixels + pixels
            chunk.sheets += sheet
        return item.end("done")

    def _put_mask(self, key: str, data: bytes, metadata: Mapping[str, str], *, new: bool) -> str:
        """Puts a mask where none is or over the one that is seen there: never over one that another run puts there
        in between. A `new` one is not looked for first."""
        over = "" if new or not self.conditional else self._etag_of(key)
        for _ in range(OVERWRITES):
            try:
                return self.target.put(
                    key,
                    data,
                    content_type="image/png",
                    metadata=metadata,
                    over=over if self.conditional else None,
                    guard=self.guard,
                )
            except Changed:  # an earlier run's that it did not record, or our own whose answer was lost
                over = self._etag_of(key)
        raise Changed(key, "is written by another program at the same time")

    def _etag_of(self, key: str) -> str:
        try:
            return self.target.head(key).etag
        except Vanished:
            return ""

    def _encode(self, item: Item, kind: str) -> bytes:
        assert item.image is not None
        assert item.mask is not None
        if kind == "mask":
            return encode_mask(item.mask, self.labels)
        if kind == "overlay":
            return encode(overlay(item.image, item.mask, self.labels))
        assert item.confidence is not None
        return encode(item.confidence)

    def _sheet(self, item: Item) -> list[tuple[int, str, bytes]]:
        assert item.image is not None
        assert item.mask is not None
        rank = hash64(item.key, item.etag)
        with self._lock:
            if len(self._shown) == SHEETS:
                if -rank <= self._shown[0]:
                    return []
                heapq.heapreplace(self._shown, -rank)
            else:
                heapq.heappush(self._shown, -rank)
        height, width = item.mask.shape
        scale = min(1.0, SHEET_SIDE / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        picture = overlay(resize_image(item.image, size), resize_mask(item.mask, size), self.labels)
        return [(rank, item.key, encode(picture, "JPEG"))]


class Segmenter:
    """All steps in one process, on CPUs. Called from several threads, it overlaps their chunks."""

    def __init__(self, request: Request, model: Model, *, guard: Callable[[], None] = lambda: None) -> None:
        self.request = request
        self.budget = Budget(PIXELS_IN_FLIGHT)
        self.fetch = Fetcher(request, self.budget)
        self.write = Writer(request, model, guard)
        self.predictor = make_predictor(request, model, "cpu")
        self.reading, self.writing = ThreadPoolExecutor(IO_THREADS), ThreadPoolExecutor(IO_THREADS)
        # Forward passes have one thread of their own: PyTorch keeps a pool of threads for each that calls it.
        self.predicting = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, chunk: Chunk) -> Chunk:
        """`chunk` with every object settled."""
        items = take_items(chunk)
        self.settle(items, chunk)
        return put_items(chunk, items)

    def settle(self, items: list[Item], chunk: Chunk) -> None:
        """Ends every item; counts go to `chunk`."""
        reading = as_completed([self.reading.submit(self.fetch, item) for item in items])
        fetched = (item for future in reading if (item := future.result()).image is not None)
        predicting = [self.predicting.submit(self._predict, item, chunk) for item in fetched]
        for predicted in predicting:
            predicted.result().result()

    def _predict(self, item: Item, chunk: Chunk) -> Future[Item]:
        assert item.image is not None
        pixels = item.image.size // 3
        predict([item], self.predictor, confidence="confidence" in self.request.settings.outputs)
        return self.writing.submit(self._write, item, pixels, chunk)

    def _write(self, item: Item, pixels: int, chunk: Chunk) -> Item:
        try:
            return item if item.status else self.write(item, chunk)
        finally:
            self.budget.release(pixels)


def make_predictor(request: Request, model: Model, device: str) -> Predictor:
    """The one predictor of a run's settings."""
    settings = request.settings
    return Predictor(model, device=device, precision=settings.precision, tile=settings.tile, tta=settings.tta)


def predict(items: list[Item], predictor: Predictor, batch_size: int | None = None, *, confidence: bool) -> None:
    """Give each fetched item its mask, and its confidence where asked for; end those that memory is too small for."""
    fetched, started = [item for item in items if item.image is not None], time.time()
    images = [item.image for item in fetched if item.image is not None]
    for item, result in zip(fetched, predictor.predict_many(images, batch_size, confidence=confidence), strict=True):
        item.spent["predict"] = (time.time() - started) / len(fetched)
        if isinstance(result, MemoryError):
            item.end("failed", str(result))
        else:
            item.mask, item.confidence = result.mask, result.confidence


def take_items(chunk: Chunk) -> list[Item]:
    """Takes what is to be done out of `chunk`, which keeps the rows that are settled."""
    todo = pc.equal(chunk.rows["status"], TODO)
    taken = chunk.rows.filter(todo).select(["key", "etag", "size", "error"])
    taken = taken.rename_columns(["key", "etag", "size", "reason"]).to_pylist()
    chunk.rows = chunk.rows.filter(pc.invert(todo))
    return [Item(**row) for row in taken]


def put_items(chunk: Chunk, items: list[Item]) -> Chunk:
    """`chunk` with the rows of ended items."""
    chunk.rows = pa.concat_tables([chunk.rows, rows_of(items)])
    stages = ("fetch", "decode", "predict", "write")
    chunk.spent = {stage: sum(item.spent.get(stage, 0.0) for item in items) for stage in stages}
    return chunk


def rows_of(items: list[Item]) -> pa.Table:
    """The rows of ended items."""
    names = ("key", "etag", "size", "status", "error", "mask_etag", "seconds", "permanent")
    return make_rows({name: [getattr(item, name) for item in items] for name in names})
