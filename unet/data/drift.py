"""Drift: how far the images of a run, and their masks, are from what the model was trained and validated on.

Images are compared with those of training, by the histograms of their channels as the model is given them; masks, and
how sure the model is of them, with what it predicted in validation: a weak model's masks are not like those of people.
What is summed in `ImageStatistics` is measured in the same way on both sides, and every image weighs the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet.data.image import Array
from unet.data.planes import Bools, Planes

Floats = npt.NDArray[np.float64]

BINS = 32
"""Bins of a histogram, of 8 sample values each."""

SAMPLES = 1 << 14
"""Pixels of an image that its histogram has, at most: images differ by more than their pixels do."""

SMALLEST_SHARE = 1e-4
"""Added to every share, so that what is empty on one side alone counts, but not without bound."""

MIN_IMAGES = 30
"""Images on which a verdict rests at least, of a run and of training each. Samples of fewer images of
one set differ by more than the limit now and then."""


@dataclass
class ImageStatistics:
    """Sums over images and their masks."""

    histograms: Floats
    """Sums over `images` of the share of each bin in the pixels, [channels, BINS]."""
    class_shares: Floats
    """Sums over `masks` of the share of each class in the pixels, [classes]."""
    images: int = 0
    masks: int = 0
    """Predicted ones."""
    confidence: float = 0.0
    """Sum over `masks` of the mean probability of the pixels' likeliest classes."""

    @classmethod
    def empty(cls, channels: int, classes: int) -> "ImageStatistics":
        """Return those of no image."""
        return cls(np.zeros((channels, BINS)), np.zeros(classes))

    def add_image(self, histograms: Floats | None) -> None:
        """Count an image by what `histograms_of` returns."""
        if histograms is not None:
            self.histograms += histograms
            self.images += 1

    def add_mask(self, class_pixels: npt.NDArray[np.int64], confidence: float | None) -> None:
        """Count a predicted mask, by its pixels of each class and their mean confidence, where it has pixels."""
        if confidence is not None and class_pixels.any():
            self.class_shares += class_pixels / class_pixels.sum()
            self.confidence += confidence
            self.masks += 1

    @property
    def mean_histograms(self) -> Floats:
        """Share of each bin, [channels, BINS]."""
        return self.histograms / max(1, self.images)

    @property
    def mean_class_shares(self) -> Floats:
        """Share of each class, [classes]."""
        return self.class_shares / max(1, self.masks)

    @property
    def mean_confidence(self) -> float | None:
        """Mean over the masks; None where there is none."""
        return self.confidence / self.masks if self.masks else None

    def to_json(self) -> dict[str, Any]:
        """Return the sums for a file."""
        return {
            "images": self.images,
            "histograms": self.histograms.round(4).tolist(),
            "masks": self.masks,
            "class_shares": self.class_shares.round(4).tolist(),
            "confidence": round(self.confidence, 4),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any], channels: int, classes: int) -> "ImageStatistics":
        """Return the sums of which `to_json` returned `found`. Raise ValueError if they are of other channels or
        classes."""
        histograms, shares = np.array(found["histograms"], np.float64), np.array(found["class_shares"], np.float64)
        if (histograms.shape, shares.shape) != ((channels, BINS), (classes,)):
            raise ValueError(f"its reference is not of {channels} channels and {classes} classes")
        return cls(histograms, shares, found["images"], found["masks"], found["confidence"])


def histograms_of(image: Array, holes: Bools | None = None) -> Floats | None:
    """Return the share of each bin in the pixels of an image (HWC uint8) that hold data, [channels, BINS]: of every so
    many rows and columns, `SAMPLES` pixels at most. None if there are none."""
    step = max(1, math.ceil(math.sqrt(image.shape[0] * image.shape[1] / SAMPLES)))
    rows = slice(step // 2, None, step)
    planes = Planes.of(np.ascontiguousarray(image[rows, rows])).images
    there = None if holes is None else Image.fromarray(~holes[rows, rows])
    values = np.concatenate([plane.histogram(there) for plane in planes])
    counts = values.reshape(image.shape[2], BINS, -1).sum(-1)
    shares: Floats = counts / max(1, counts[0].sum())
    return shares if counts.any() else None


def stability_index(expected: Floats, actual: Floats) -> float:
    """Return the population stability index (PSI) of two distributions over the same bins: the sum of
    (actual - expected) ln(actual / expected), after adding `SMALLEST_SHARE` to all.

    It is Jeffreys' divergence; as a rule of thumb below 0.1 nothing has changed, and above 0.25 much has (Siddiqi,
    Credit Risk Scorecards, 2006).
    """
    p, q = ((shares + SMALLEST_SHARE) / (shares + SMALLEST_SHARE).sum() for shares in (expected, actual))
    return float(((q - p) * np.log(q / p)).sum())


@dataclass(frozen=True)
class Drift:
    """A run beside the training of its model. `limit`: PSI, `confidence_limit`: fall of the mean confidence, over
    which something has drifted."""

    reference: ImageStatistics
    current: ImageStatistics
    channels: tuple[str, ...]
    """Their names."""
    limit: float
    confidence_limit: float

    @property
    def judged(self) -> list[str]:
        """Names of what there are images enough for a verdict on: of channels, `classes` and `confidence`."""
        images = min(self.reference.images, self.current.images) >= MIN_IMAGES
        masks = min(self.reference.masks, self.current.masks) >= MIN_IMAGES
        return [*(self.channels if images else ()), *(("classes", "confidence") if masks else ())]

    @property
    def indices(self) -> dict[str, float]:
        """PSI of each channel, and of the classes where they are known."""
        pairs = zip(self.reference.mean_histograms, self.current.mean_histograms, strict=True)
        found = dict(zip(self.channels, (stability_index(*pair) for pair in pairs), strict=True))
        if self.reference.masks and self.current.masks:
            found["classes"] = stability_index(self.reference.mean_class_shares, self.current.mean_class_shares)
        return found

    @property
    def confidence_fall(self) -> float | None:
        """How far the mean confidence is below that of the validation images; None where one is not known."""
        before, now = self.reference.mean_confidence, self.current.mean_confidence
        return None if before is None or now is None else before - now

    @property
    def drifted(self) -> list[str]:
        """Names of what is beyond its limit."""
        beyond = {name for name, index in self.indices.items() if index > self.limit}
        if self.confidence_fall is not None and self.confidence_fall > self.confidence_limit:
            beyond.add("confidence")
        return [name for name in self.judged if name in beyond]

    def to_json(self) -> dict[str, Any]:
        """Return what summary.json says."""
        confidences = (part.mean_confidence for part in (self.current, self.reference))
        return {
            "images": self.current.images,
            "reference_images": self.reference.images,
            "reference_masks": self.reference.masks,
            "psi": {name: round(index, 4) for name, index in self.indices.items()},
            **dict(zip(("confidence", "reference_confidence"), map(_rounded, confidences), strict=True)),
            "judged": self.judged,
            "drifted": self.drifted,
        }


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)


def channel_names(bands: Sequence[int] | None) -> tuple[str, ...]:
    """Return the names of the channels of a model: colours, or bands by their numbers."""
    return ("red", "green", "blue") if bands is None else tuple(f"band {band}" for band in bands)
