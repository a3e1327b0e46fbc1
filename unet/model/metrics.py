"""Scores of a segmentation: counts first, ratios once, at the end.

A `ConfusionMatrix` is [C, C] int64 counts of pixels, rows the truth and columns the prediction. Counts of images,
batches and ranks add; no ratio is ever averaged over any of them. A class absent from truth and prediction is NaN
and left out of means.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet.data.labels import IGNORE

Counts = npt.NDArray[np.int64]
Ratios = npt.NDArray[np.float64]


@dataclass
class ConfusionMatrix:
    """Pixel counts of `classes` classes. `counts`: [C, C] int64, truth by prediction."""

    counts: Counts

    @classmethod
    def empty(cls, classes: int) -> "ConfusionMatrix":
        """Return a matrix of no pixels."""
        return cls(np.zeros((classes, classes), np.int64))

    def add(self, truth: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]) -> None:
        """Count every pixel whose truth is not `IGNORE`. Both: class indices of one shape."""
        classes = len(self.counts)
        valid = truth != IGNORE
        pairs = truth[valid].astype(np.int64) * classes + prediction[valid]
        self.counts += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    @property
    def pixel_accuracy(self) -> float:
        """Correct pixels over valid pixels; NaN without any."""
        return float(ratio(np.trace(self.counts), self.counts.sum()))

    @property
    def intersection(self) -> Counts:
        """Pixels in truth and prediction, by class, [C]."""
        return self._totals()[0]

    @property
    def union(self) -> Counts:
        """Pixels in truth or prediction, by class, [C]."""
        hit, truth, prediction = self._totals()
        return truth + prediction - hit

    @property
    def iou(self) -> Ratios:
        """Intersection over union (Jaccard index) by class, [C]."""
        return ratio(self.intersection, self.union)

    @property
    def dice(self) -> Ratios:
        """Dice coefficient (F1) by class, [C]."""
        hit, truth, prediction = self._totals()
        return ratio(2 * hit, truth + prediction)

    @property
    def precision(self) -> Ratios:
        """Correct pixels over all that were predicted as the class, [C]; NaN for a class never predicted."""
        hit, _, prediction = self._totals()
        return ratio(hit, prediction)

    @property
    def recall(self) -> Ratios:
        """Correct pixels over all that are of the class, [C]; NaN for a class absent from truth."""
        hit, truth, _ = self._totals()
        return ratio(hit, truth)

    @property
    def mean_class_accuracy(self) -> float:
        """Mean recall over the classes present in truth; NaN without any."""
        return mean_ignoring_nan(self.recall)

    @property
    def frequency_weighted_iou(self) -> float:
        """Sum over classes of share of the truth times IoU (Long et al., 2015); NaN without any pixel."""
        _, truth, _ = self._totals()
        return float(ratio(truth @ np.nan_to_num(self.iou), truth.sum()))

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes present in truth or prediction; NaN without any."""
        return mean_ignoring_nan(self.iou)

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the classes present in truth or prediction; NaN without any."""
        return mean_ignoring_nan(self.dice)

    def _totals(self) -> tuple[Counts, Counts, Counts]:
        """Return pixels by class, each [C]: correct ones, those in truth, those in the prediction."""
        return np.diag(self.counts), self.counts.sum(1), self.counts.sum(0)


def mean_ignoring_nan(ratios: Ratios) -> float:
    """Return the mean of the ratios that are not NaN; NaN without any."""
    present = ratios[~np.isnan(ratios)]
    return float(present.mean()) if len(present) else float("nan")


def nan_to_none(value: Any) -> Any:
    """Return `value` with None for each number in it, or in dictionaries in it, that JSON lacks: NaN and infinity."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Ratios:
    """Return the ratio of counts; NaN where the denominator is 0."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(top, bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)
