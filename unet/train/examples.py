"""What batches are made of: reads and decodes the pairs of a batch, and augments those of a training batch.

images: NHWC uint8; masks: NHW uint8 class indices.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from unet.data.augment import draw_view, mix_classes
from unet.data.channels import RGB, Channels
from unet.data.image import Array, ImageError, preprocess_image, preprocess_mask
from unet.data.labels import LabelSet
from unet.data.layouts import Pair
from unet.data.open_pair import DecodedPair, OpenPair, open_pairs
from unet.data.planes import Bools
from unet.data.settings import AugmentSettings
from unet.settings import Geometry
from unet.train.schedule import Sample

CACHE_BYTES = 384 << 20
"""Decoded pairs that a process which makes batches keeps, at most."""

MIXING = 1
"""Ends the seed of what is drawn for mixing, beside what is drawn for the view."""

_cache: dict[Pair, DecodedPair] = {}
"""The decoded pairs of this process. A process works for one run, hence for one label set and channels. The first ones
stay: each pair is drawn once a pass, so that none is worth more than another."""


@dataclass(frozen=True)
class BatchSpec:
    """How pairs become arrays; the same for all batches of a run."""

    labels: LabelSet
    geometry: Geometry
    augment: AugmentSettings
    seed: int
    largest: tuple[int, int] = (0, 0)
    """Height and width of the largest image that is validated whole."""
    channels: Channels = RGB

    def bytes_of(self, request: "BatchRequest") -> int:
        """Return about how many bytes a batch has: channels and mask."""
        whole = self.geometry.kind == "native" and not request.samples
        return (self.channels.count + 1) * len(request.pairs) * math.prod(self.largest if whole else self.geometry.size)


@dataclass(frozen=True)
class BatchRequest:
    """A batch to be made: of augmented training images (`samples` given), or of validation images."""

    pairs: tuple[Pair, ...]
    samples: tuple[Sample, ...] = ()
    partners: tuple[tuple[Pair, Sample], ...] = ()
    """What each of `samples` may be mixed with, if anything."""

    def part(self, first: int, last: int) -> "BatchRequest":
        """Return the request of a part of it."""
        return BatchRequest(self.pairs[first:last], self.samples[first:last], self.partners[first:last])


@dataclass(frozen=True)
class Batch:
    """images: NHWC uint8; masks: NHW uint8."""

    images: Array
    masks: Array
    holes: tuple[Bools | None, ...] = ()
    """Of validation images: where each holds no data, HW, if anywhere."""


def make_batch(request: BatchRequest, spec: BatchSpec) -> Batch:
    """Read and decode the pairs of `request`, and augment those of a training batch.

    Files of many pairs are read at a time; they are decoded in order.

    Raises:
        ImageError: names the file.
    """
    views, holes = list[tuple[Array, Array]](), list[Bools | None]()
    if request.samples:
        views = _training_views(request, spec)
    for pair in _read(request.pairs, spec) if not request.samples else ():
        image, mask = pair.decode(spec.labels, channels=spec.channels)
        views.append((preprocess_image(image.to_array(), spec.geometry), preprocess_mask(mask, spec.geometry)))
        no_data = None if image.no_data is None else np.asarray(image.no_data)
        holes.append(None if no_data is None else preprocess_mask(no_data, spec.geometry) > 0)
    return Batch(np.stack([image for image, _ in views]), np.stack([mask for _, mask in views]), tuple(holes))


def _training_views(request: BatchRequest, spec: BatchSpec) -> list[tuple[Array, Array]]:
    """Return a view, image and mask, of each sample, mixed with that of its partner as often as the spec says."""
    own = list(zip(request.pairs, request.samples, strict=True))
    mixing = [np.random.default_rng((spec.seed, *sample, MIXING)) for sample in request.samples]
    mixes = [bool(request.partners) and rng.random() < (spec.augment.class_mix or 0) for rng in mixing]
    shown = list(dict.fromkeys([*own, *compress(request.partners, mixes)]))
    views = dict[tuple[Pair, Sample], tuple[Array, Array]]()
    for item, pair in zip(shown, _read([pair for pair, _ in shown], spec), strict=True):
        rng = np.random.default_rng((spec.seed, *item[1]))
        view = draw_view(pair.size, geometry=spec.geometry, settings=spec.augment, rng=rng)
        views[item] = view.render(*pair.decode(spec.labels, channels=spec.channels, region=view.region))
    return [
        mix_classes(views[item], views[request.partners[place]], mixing[place]) if mixes[place] else views[item]
        for place, item in enumerate(own)
    ]


def _read(pairs: Sequence[Pair], spec: BatchSpec) -> Iterator[OpenPair | DecodedPair]:
    kept = [_cache.get(pair) for pair in pairs]
    opened = open_pairs([pair for pair, source in zip(pairs, kept, strict=True) if source is None])
    return (source or _keep(next(opened), spec) for source in kept)


def _keep(opened: OpenPair | ImageError, spec: BatchSpec) -> OpenPair | DecodedPair:
    """Return a pair that was read: decoded and in the cache, if there is room, else open."""
    if isinstance(opened, ImageError):
        raise opened
    each = (4 if spec.channels.bands is None else spec.channels.count) + 1  # Pillow keeps RGB in four; and the mask
    pixels = sum(math.prod(pair.size) for pair in _cache.values()) + math.prod(opened.size)
    if each * pixels > CACHE_BYTES:
        return opened
    decoded = DecodedPair(*opened.decode(spec.labels, channels=spec.channels))
    _cache[opened.pair] = decoded
    return decoded
