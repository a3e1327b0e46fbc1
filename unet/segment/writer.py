"""Writes what is made of an image: its mask, and on request an overlay and the confidence."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from unet.data.drift import histograms_of
from unet.data.geotiff import Georeference, encode_geotiff
from unet.data.image import Array, encode_image, encode_mask, overlay, resize_image, resize_mask, size_within
from unet.data.planes import Bools
from unet.data.provenance import provenance_of
from unet.model.artifact import Model
from unet.model.predictor import Prediction
from unet.segment.catalogue import certainty
from unet.segment.item import Item, Outcome
from unet.segment.object_parts import find_objects
from unet.segment.run_spec import OBJECTS, RunSpec, hash64
from unet.storage.faults import Changed, Vanished
from unet.storage.objects import Guard, no_guard


@dataclass(frozen=True)
class Source:
    """An image as it was decoded."""

    image: Array
    """HWC uint8."""
    holes: Bools | None = None
    """Where it holds no data, HW."""
    georeference: Georeference = ()


THUMBNAILS, THUMBNAIL_SIDE = 24, 320
"""Images of the contact sheet, and their longest side in pixels."""

MASK_ATTEMPTS = 3
"""Attempts to write a mask where another object is than the one that was seen."""


class Writer:
    """Encodes and writes. `guard` is called before each attempt to write, and waits until this run may write."""

    def __init__(self, spec: RunSpec, model: Model, guard: Guard = no_guard) -> None:
        self.spec = spec
        self.labels, self.provenance = model.labels, provenance_of(spec.fingerprint, model.digest, model.labels)
        self.output, self.conditional, self.guard = spec.output_store, spec.conditional, guard
        self._lock = threading.Lock()
        self._lowest_ranks: list[int] = []
        """Of the thumbnails so far. Ranks are hashes, so that the images of the lowest are a random sample."""

    def __call__(self, item: Item, source: Source, prediction: Prediction) -> Outcome:
        """Write what `item` asks for. Raise StorageError."""
        mask, mask_etag, holes = prediction.mask, item.mask_etag, source.holes
        metadata = {name: text for name, text in self.provenance.items() if text.isascii()}  # more S3 does not take
        metadata |= {"image-etag": item.etag, "run": self.spec.run}
        assert prediction.confidence is not None
        confidence, unsure = certainty(prediction.confidence if holes is None else prediction.confidence[~holes])
        objects, small = self._find_objects(item, source, prediction)
        kinds = [kind for kind in item.outputs.split(",") if kind != OBJECTS]
        for key, kind in zip(self.spec.output_keys(item.key, kinds), kinds, strict=True):
            data = self._encode(kind, source, prediction)
            if kind == "mask":
                mask_etag = self._put_mask(key, data, metadata, item.mask_etag or "")
            else:
                self.output.put(key, data, metadata=metadata, guard=self.guard)
        return Outcome(
            "done",
            mask_etag=mask_etag,
            class_pixels=_class_pixels(mask, holes, len(self.labels.classes)),
            histograms=histograms_of(source.image, holes),
            no_data=0 if holes is None else int(holes.sum()),
            size=source.image.shape,
            confidence=confidence,
            unsure=unsure,
            objects=objects,
            small_objects=small,
            thumbnail=self._thumbnail(item, source.image, mask),
        )

    def _find_objects(self, item: Item, source: Source, prediction: Prediction) -> tuple[pa.Table | None, int]:
        """Return the objects of a mask and how many were left out; None where they are not asked for."""
        if OBJECTS not in item.outputs.split(","):
            return None, 0
        settings = self.spec.settings
        classes = {self.labels.names.index(name): name for name in settings.object_classes}
        return find_objects(prediction, source.holes, source.georeference, classes, settings.min_area)

    def _put_mask(self, key: str, data: bytes, metadata: Mapping[str, str], expected_etag: str) -> str:
        """Write a mask over the one that is recorded, or seen there, and never over one that another run writes in
        between."""
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

    def _encode(self, kind: str, source: Source, prediction: Prediction) -> bytes:
        if kind == "mask" and self.spec.settings.mask_format == "tiff":
            return encode_geotiff(prediction.mask, self.labels, source.holes, source.georeference, self.provenance)
        if kind == "mask":
            return encode_mask(prediction.mask, self.labels, source.holes, self.provenance)
        if kind == "overlay":
            return encode_image(overlay(source.image, prediction.mask, self.labels))
        assert prediction.confidence is not None
        return encode_image(prediction.confidence)

    def _thumbnail(self, item: Item, image: Array, mask: Array) -> tuple[int, str, bytes] | None:
        """Return rank, key and overlay (JPEG) if the rank is among the lowest so far."""
        rank = hash64(item.key, item.etag)
        with self._lock:
            self._lowest_ranks = sorted([*self._lowest_ranks, rank])[:THUMBNAILS]
            if rank not in self._lowest_ranks:
                return None
        size = size_within(THUMBNAIL_SIDE, (mask.shape[0], mask.shape[1]))
        picture = overlay(resize_image(image, size), resize_mask(mask, size), self.labels)
        return rank, item.key, encode_image(picture, "JPEG")


def _class_pixels(mask: Array, holes: Bools | None, classes: int) -> npt.NDArray[np.int64]:
    """Return how many pixels of a mask each class has, where the image holds data. Pillow counts thrice as fast as
    NumPy."""
    there = None if holes is None else Image.fromarray(~holes)
    return np.array(Image.fromarray(mask).histogram(there)[:classes])
