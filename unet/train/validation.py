"""Validation: the loss sums and the confusion matrix of images, by the predictor of evaluation and segmentation.

An image is seen in tiles and bands, and a batch in halves where memory is too small for all of it. Sums are float64, so
that they hardly depend on how images are cut and shared out.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from unet.data.image import Array
from unet.model.metrics import ConfusionMatrix
from unet.model.predictor import Predictor, apply_or_halve
from unet.settings import RequestError
from unet.train.examples import Batch
from unet.train.loss import LossSums

SumsOf = Callable[[Tensor, Tensor], LossSums]
"""Loss sums from logits, NCHW float, and masks, NHW uint8 class indices, both on the predictor's device."""


@torch.inference_mode()
def validate(predictor: Predictor, sums_of: SumsOf, batches: Iterable[Batch]) -> tuple[LossSums, ConfusionMatrix]:
    """Return the sums over all pixels of `batches`.

    Raises:
        RequestError: an image does not fit in memory; says what can be lowered.
    """
    classes = len(predictor.model.labels.classes)
    sums = LossSums(*(zeros.double() for zeros in LossSums.zeros(classes, predictor.device)))
    matrix = ConfusionMatrix.empty(classes)

    def score(pairs: Sequence[tuple[Array, Array]]) -> list[tuple[LossSums, ConfusionMatrix]]:
        images, truths = zip(*pairs, strict=True)
        bands = predictor.logits_in_bands(images)
        return [_score_image(*pair, sums_of, classes) for pair in zip(bands, truths, strict=True)]

    for batch in batches:
        for scored in apply_or_halve(score, list(zip(batch.images, batch.masks, strict=True))):
            if isinstance(scored, MemoryError):
                raise RequestError(_too_large(predictor, batch))
            sums = _add(sums, scored[0])
            matrix.counts += scored[1].counts
    return sums, matrix


def _score_image(
    bands: Iterable[Tensor], truth: Array, sums_of: SumsOf, classes: int
) -> tuple[LossSums, ConfusionMatrix]:
    """Return the sums of one image from its logits in bands, each [rows, W, C], and its mask, HW."""
    totals: list[LossSums] = []
    matrix, top = ConfusionMatrix.empty(classes), 0
    for logits in bands:
        target = truth[top : top + len(logits)]
        top += len(logits)
        totals.append(sums_of(logits.permute(2, 0, 1)[None], torch.tensor(target, device=logits.device)[None]))
        matrix.add(target, logits.max(-1).indices.to(torch.uint8).cpu().numpy())
    assert top == len(truth)
    return LossSums(*(torch.stack(parts).double().sum(0) for parts in zip(*totals, strict=True))), matrix


def _add(a: LossSums, b: LossSums) -> LossSums:
    return LossSums(*(one + other for one, other in zip(a, b, strict=True)))


def _too_large(predictor: Predictor, batch: Batch) -> str:
    height, width = batch.images.shape[1:3]
    lower = "--size or --width" if predictor.model.geometry.kind == "resize" else "--width"
    return (
        f"validating an image of {height} x {width} pixels does not fit in memory, or in that of the GPU; "
        f"lower {lower}, cut the validation images into smaller ones, or add memory"
    )
