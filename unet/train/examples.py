"""What batches are made of: reads and decodes the pairs of a batch, and augments those of a training batch.

images: NHWC uint8; masks: NHW uint8 class indices.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from unet.data.augment import augment
from unet.data.image import Array, preprocess_image, preprocess_mask
from unet.data.labelled_set import read_pair
from unet.data.labels import LabelSet
from unet.data.layouts import Pair
from unet.data.settings import AugmentSettings
from unet.settings import Geometry, Window
from unet.train.schedule import Sample

CACHE_BYTES = 384 << 20
"""Decoded pairs that a process which makes batches keeps, at most."""

BYTES_PER_PIXEL = 5
"""Of a decoded pair: Pillow keeps RGB in four, and a mask has one."""

_cache: dict[Pair, tuple[Image.Image, Array]] = {}
"""The decoded pairs of this process. A process works for one run, hence for one label set and window."""


@dataclass(frozen=True)
class BatchSpec:
    """How pairs become arrays; the same for all batches of a run."""

    labels: LabelSet
    geometry: Geometry
    augment: AugmentSettings
    seed: int
    largest: tuple[int, int] = (0, 0)
    """Height and width of the largest image that is validated whole."""
    window: Window | None = None
    """How 16-bit images are scaled."""

    def bytes_of(self, request: "BatchRequest") -> int:
        """Return about how many bytes a batch has: RGB and mask."""
        whole = self.geometry.kind == "native" and not request.samples
        return 4 * len(request.pairs) * math.prod(self.largest if whole else self.geometry.size)


@dataclass(frozen=True)
class BatchRequest:
    """A batch to be made: of augmented training images (`samples` given), or of validation images."""

    pairs: tuple[Pair, ...]
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Batch:
    """images: NHWC uint8; masks: NHW uint8."""

    images: Array
    masks: Array


def make_batch(request: BatchRequest, spec: BatchSpec) -> Batch:
    """Read and decode the pairs of `request`, and augment those of a training batch.

    Raises:
        ImageError: names the file.
    """
    views = []
    for place, pair in enumerate(request.pairs):
        image, mask = _read_cached(pair, spec)
        if request.samples:
            rng = np.random.default_rng((spec.seed, *request.samples[place]))
            views.append(augment(image, mask, geometry=spec.geometry, settings=spec.augment, rng=rng))
        else:
            views.append((preprocess_image(np.asarray(image), spec.geometry), preprocess_mask(mask, spec.geometry)))
    return Batch(np.stack([image for image, _ in views]), np.stack([mask for _, mask in views]))


def _read_cached(pair: Pair, spec: BatchSpec) -> tuple[Image.Image, Array]:
    """Return what `read_pair` does, which is most of the work of a batch, from the cache as far as it goes."""
    if pair not in _cache:
        image, mask = read_pair(pair, spec.labels, window=spec.window)
        if BYTES_PER_PIXEL * (sum(cached.size for _, cached in _cache.values()) + mask.size) > CACHE_BYTES:
            return image, mask
        _cache[pair] = image, mask
    return _cache[pair]
