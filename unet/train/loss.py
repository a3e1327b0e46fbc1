"""Losses from logits: cross-entropy, optionally plus soft Dice, over the pixels that are not `IGNORE`.

logits: NCHW float; target: NHW class indices. A loss is computed in two steps, sums then value, so that sums of
several batches or ranks can be added in between. A target without a valid pixel gives 0, not NaN. Shapes never depend
on values, which a GPU would have to be waited for.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.data.labels import IGNORE


class LossSums(NamedTuple):
    """What adds up over pixels. All float32 (float64 for float64 logits)."""

    cross_entropy: Tensor
    """Sum of weight[target] * -log p[target], scalar."""
    weight: Tensor
    """Sum of weight[target], scalar, as `weight_of`."""
    intersection: Tensor
    """Sum of p over pixels of the class, [C]."""
    predicted: Tensor
    """Sum of p over valid pixels, [C]."""
    truth: Tensor
    """Number of pixels of the class, [C]."""

    @classmethod
    def zeros(cls, classes: int, device: torch.device | str = "cpu") -> "LossSums":
        """Return the sums of no pixel."""
        return cls(*(torch.zeros(shape, device=device) for shape in ((), (), classes, classes, classes)))


def loss_sums(
    logits: Tensor, target: Tensor, class_weights: Tensor | None = None, *, with_dice: bool = True
) -> LossSums:
    """Return the sums that `cross_entropy` and `dice` divide. `class_weights`: [C] or None for all 1.

    Without Dice its sums, which cost as much as the cross-entropy, are zeros.
    """
    logits = logits.float() if logits.dtype != torch.float64 else logits
    log_p = F.log_softmax(logits, dim=1)
    total = F.nll_loss(log_p, target.long(), class_weights, ignore_index=IGNORE, reduction="sum")
    weight = weight_of(target, class_weights).to(logits)
    if not with_dice:
        zeros = logits.new_zeros(logits.shape[1])
        return LossSums(total, weight, zeros, zeros, zeros)
    classes = torch.arange(logits.shape[1], dtype=target.dtype, device=target.device)
    truth = (target.unsqueeze(-1) == classes).permute(0, 3, 1, 2)
    p = log_p.exp() * (target != IGNORE).unsqueeze(1)
    intersection, predicted, pixels = (part.sum((0, 2, 3)) for part in (p * truth, p, truth))
    return LossSums(total, weight, intersection, predicted, pixels.to(logits))


def weight_of(target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the sum of weight[target] over valid pixels, scalar: their number where no weights are given."""
    if class_weights is None:
        return (target != IGNORE).sum()
    return F.pad(class_weights, (0, IGNORE + 1 - len(class_weights)))[target.long()].sum()


def cross_entropy(sums: LossSums) -> Tensor:
    """Return the weighted mean of -log p[target] over valid pixels."""
    return sums.cross_entropy / sums.weight.clamp(min=1e-12)


def dice(sums: LossSums) -> Tensor:
    """Return 1 - soft Dice, 2 |P n T| / (|P| + |T|), averaged over the target's classes (Milletari et al., 2016)."""
    present = sums.truth > 0
    score = 2 * sums.intersection / (sums.predicted + sums.truth).clamp(min=1e-12)
    return ((1 - score) * present).sum() / present.sum().clamp(min=1)
