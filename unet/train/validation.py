"""Validation: the loss sums and the confusion matrix of images, and how sure the model is of them, by the predictor of
evaluation and segmentation.

An image is seen in tiles and bands, and a batch in halves where memory is too small for all of it. Sums are float64, so
that they hardly depend on how images are cut and shared out.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unet.data.drift import ImageStatistics
from unet.data.image import Array
from unet.data.planes import Bools
from unet.model.metrics import ConfusionMatrix
from unet.model.predictor import Predictor, apply_or_halve
from unet.settings import RequestError
from unet.train.examples import Batch
from unet.train.loss import LossSums

SumsOf = Callable[[Tensor, Tensor], LossSums]
"""Loss sums from logits, NCHW float, and masks, NHW uint8 class indices, both on the predictor's device."""


class Validation(NamedTuple):
    """What is counted in images."""

    sums: LossSums
    matrix: ConfusionMatrix
    statistics: ImageStatistics
    """Of the masks, and of their ignored pixels too."""


class _Scored(NamedTuple):
    """What is counted in an image."""

    sums: LossSums
    matrix: ConfusionMatrix
    class_pixels: npt.NDArray[np.int64]
    """Of the prediction, where the image holds data."""
    confidence: float
    """Mean over these pixels."""


@torch.inference_mode()
def validate(predictor: Predictor, sums_of: SumsOf, batches: Iterable[Batch]) -> Validation:
    """Return the sums over all of `batches`.

    Raises:
        RequestError: an image does not fit in memory; says what can be lowered.
    """

    def score(samples: Sequence[tuple[Array, Array, Bools | None]]) -> list[_Scored]:
        bands_of_images = predictor.logits_in_bands([image for image, _, _ in samples])
        pairs = zip(bands_of_images, samples, strict=True)
        return [_score(bands, mask, holes, sums_of, classes) for bands, (_, mask, holes) in pairs]

    classes = len(predictor.model.labels.classes)
    sums, matrix = LossSums.zeros(classes, predictor.device), ConfusionMatrix.empty(classes)
    statistics = ImageStatistics.empty(predictor.model.channels.count, classes)
    for batch in batches:
        for scored in apply_or_halve(score, list(zip(batch.images, batch.masks, batch.holes, strict=True))):
            if isinstance(scored, MemoryError):
                raise RequestError(_too_large(batch, predictor.model.geometry.kind))
            sums = LossSums(*(total + more for total, more in zip(sums, scored.sums, strict=True)))
            matrix.counts += scored.matrix.counts
            statistics.add_mask(scored.class_pixels, scored.confidence)
    return Validation(LossSums(*(total.double() for total in sums)), matrix, statistics)


def _score(bands: Iterable[Tensor], mask: Array, holes: Bools | None, sums_of: SumsOf, classes: int) -> _Scored:
    """Return what is counted in one image, from its logits in bands, each [rows, W, C], its mask, HW, and where it
    holds no data, HW."""
    parts, matrix, top = list[LossSums](), ConfusionMatrix.empty(classes), 0
    class_pixels, confidence = np.zeros(classes, np.int64), 0.0
    for logits in bands:
        rows = slice(top, top + len(logits))
        truth, top = mask[rows], rows.stop
        parts.append(sums_of(logits.permute(2, 0, 1)[None], torch.tensor(truth, device=logits.device)[None]))
        highest, likeliest = logits.float().max(-1, keepdim=True)
        prediction = likeliest[..., 0].to(torch.uint8).cpu().numpy()
        probability = 1 / (logits.float() - highest).exp_().sum(-1)
        matrix.add(truth, prediction)
        if holes is not None:
            there = ~holes[rows]
            prediction, probability = prediction[there], probability[torch.from_numpy(there).to(logits.device)]
        class_pixels += np.bincount(prediction.reshape(-1), minlength=classes)
        confidence += float(probability.double().sum())
    assert top == len(mask)
    sums = LossSums(*(torch.stack(part).double().sum(0) for part in zip(*parts, strict=True)))
    return _Scored(sums, matrix, class_pixels, confidence / max(1, class_pixels.sum()))


def _too_large(batch: Batch, kind: str) -> str:
    height, width = batch.images.shape[1:3]
    return (
        f"validating an image of {height} x {width} pixels does not fit in memory, or in that of the GPU; lower "
        f"{'--size or --width' if kind == 'resize' else '--width'}, cut the images into smaller ones, or add memory"
    )
