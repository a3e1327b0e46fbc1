"""How sure a difference of two models' scores is: a paired bootstrap over images (Efron, 1979; percentile intervals).

In each resample the images are drawn anew with replacement, the same ones for both models; their counts are added, and
the ratio is computed once. Counts by image: [N, C] int64; resamples: B; images: N; classes: C.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unet.model.metrics import Counts, Ratios, ratio

RESAMPLES, CONFIDENCE = 10_000, 0.95
"""Resamples, and the share of them that lies in an interval."""

WEIGHTS = 1 << 22
"""Numbers of images in resamples that are drawn at a time, at most; 8 bytes each."""


@dataclass(frozen=True)
class Overlap:
    """Pixels by image and class, [N, C] each."""

    intersection: Counts
    """In truth and prediction."""
    union: Counts
    """In either."""

    @property
    def iou(self) -> Ratios:
        """IoU by class over all images, [C]; NaN for a class that is nowhere."""
        return ratio(self.intersection.sum(0), self.union.sum(0))


@dataclass(frozen=True)
class Difference:
    """A score less another. Where either does not exist all is NaN."""

    value: float
    low: float
    """Lower bound of its interval."""
    high: float


def iou_differences(
    new: Overlap, old: Overlap, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Difference, list[Difference]]:
    """Return how much higher the mean IoU of `new` is than that of `old`, on the same images, and the IoU by class."""
    drawn = np.concatenate([_with_mean(a) - _with_mean(b) for a, b in _resampled_iou(new, old, resamples, seed)])
    values = (_with_mean(new.iou[None]) - _with_mean(old.iou[None]))[0]
    mean, *by_class = (_difference(value, column) for value, column in zip(values.tolist(), drawn.T, strict=True))
    return mean, by_class


def _resampled_iou(new: Overlap, old: Overlap, resamples: int, seed: int) -> Iterator[tuple[Ratios, Ratios]]:
    """Yield the IoU of both models in some resamples, [b, C] each."""
    counts = [part.astype(np.float64) for part in (new.intersection, new.union, old.intersection, old.union)]
    images, rng = len(new.union), np.random.default_rng(seed)
    step = max(1, WEIGHTS // images)
    for start in range(0, resamples, step):
        weights = rng.multinomial(images, np.full(images, 1 / images), size=min(step, resamples - start))
        sums = [weights.astype(np.float64) @ part for part in counts]
        yield ratio(*sums[:2]), ratio(*sums[2:])


def _with_mean(iou: Ratios) -> Ratios:
    """Return [b, 1 + C]: before the IoU by class, [b, C], its mean over the classes that occur."""
    return np.concatenate([ratio(np.nansum(iou, 1), np.isfinite(iou).sum(1))[:, None], iou], 1)


def _difference(value: float, drawn: npt.NDArray[np.float64]) -> Difference:
    finite = drawn[np.isfinite(drawn)]
    if not len(finite) or not np.isfinite(value):
        return Difference(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(value, float(low), float(high))
