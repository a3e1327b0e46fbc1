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

    def score(pairs: Sequence[tuple[Array, Array]]) -> list[tuple[LossSums, ConfusionMatrix]]:
        bands_of_images = predictor.logits_in_bands([image for image, _ in pairs])
        return [_score(bands, mask, sums_of, classes) for bands, (_, mask) in zip(bands_of_images, pairs, strict=True)]

    classes = len(predictor.model.labels.classes)
    sums, matrix = LossSums.zeros(classes, predictor.device), ConfusionMatrix.empty(classes)
    for batch in batches:
        for scored in apply_or_halve(score, list(zip(batch.images, batch.masks, strict=True))):
            if isinstance(scored, MemoryError):
                raise RequestError(_too_large(batch, predictor.model.geometry.kind))
            sums = LossSums(*(total + more for total, more in zip(sums, scored[0], strict=True)))
            matrix.counts += scored[1].counts
    return LossSums(*(total.double() for total in sums)), matrix


def _score(bands: Iterable[Tensor], mask: Array, sums_of: SumsOf, classes: int) -> tuple[LossSums, ConfusionMatrix]:
    """Return the sums of one image from its logits in bands, each [rows, W, C], and its mask, HW."""
    parts, matrix, top = list[LossSums](), ConfusionMatrix.empty(classes), 0
    for logits in bands:
        truth, top = mask[top : top + len(logits)], top + len(logits)
        parts.append(sums_of(logits.permute(2, 0, 1)[None], torch.tensor(truth, device=logits.device)[None]))
        matrix.add(truth, logits.max(-1).indices.to(torch.uint8).cpu().numpy())
    assert top == len(mask)
    return LossSums(*(torch.stack(part).double().sum(0) for part in zip(*parts, strict=True))), matrix


def _too_large(batch: Batch, kind: str) -> str:
    height, width = batch.images.shape[1:3]
    return (
        f"validating an image of {height} x {width} pixels does not fit in memory, or in that of the GPU; lower "
        f"{'--size or --width' if kind == 'resize' else '--width'}, cut the images into smaller ones, or add memory"
    )
