"""Losses: equal to the library's, blind to ignored pixels, and additive over batches."""

import pytest
import torch
from torch.nn import functional as F

from unet.data.labels import IGNORE
from unet.train.loss import LossSums, cross_entropy, dice, loss_sums, weight_of


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [4, 5, 6, 7] and a target with ignored pixels and one absent class."""
    torch.manual_seed(0)
    target = torch.randint(0, 4, (4, 6, 7), dtype=torch.uint8)
    target[torch.rand(target.shape) < 0.3] = IGNORE
    return torch.randn(4, 5, 6, 7, dtype=torch.float64, requires_grad=True), target


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_equals_the_librarys(batch: tuple[torch.Tensor, torch.Tensor], weighted: bool) -> None:
    logits, target = batch
    weights = torch.rand(5, dtype=torch.float64) if weighted else None
    ours = cross_entropy(loss_sums(logits, target, weights))
    theirs = F.cross_entropy(logits, target.long(), weights, ignore_index=IGNORE)
    assert torch.allclose(ours, theirs)


def test_dice_is_the_mean_over_the_classes_of_the_target(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = batch
    p = logits.softmax(1).permute(0, 2, 3, 1)[target != IGNORE]
    truth = F.one_hot(target[target != IGNORE].long(), 5).double()
    scores = [2 * (p[:, c] * truth[:, c]).sum() / (p[:, c].sum() + truth[:, c].sum()) for c in range(4)]
    assert torch.allclose(dice(loss_sums(logits, target)), 1 - torch.stack(scores).mean())


def test_sums_of_parts_add_up_to_the_whole(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = batch
    parts = [loss_sums(x, y) for x, y in zip(logits.split([1, 3]), target.split([1, 3]), strict=True)]
    added = LossSums(*(a + b for a, b in zip(*parts, strict=True)))
    whole = loss_sums(logits, target)
    assert torch.allclose(cross_entropy(added), cross_entropy(whole))
    assert torch.allclose(dice(added), dice(whole))


def test_without_dice_only_its_sums_are_missing(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    whole, part = loss_sums(*batch), loss_sums(*batch, with_dice=False)
    assert torch.equal(whole.cross_entropy, part.cross_entropy)
    assert torch.equal(whole.weight, part.weight)
    assert not part.intersection.any()


def test_ignored_pixels_have_no_gradient(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = batch
    sums = loss_sums(logits, target)
    (cross_entropy(sums) + dice(sums)).backward()
    assert logits.grad is not None
    gradient = logits.grad.abs().sum(1)
    assert (gradient[target == IGNORE] == 0).all()
    assert (gradient[target != IGNORE] > 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_no_shape_depends_on_a_value(weighted: bool) -> None:
    """Tensors without values have no others: a GPU need not be waited for."""
    weights = torch.rand(5, device="meta") if weighted else None
    logits = torch.zeros(4, 5, 6, 7, device="meta", requires_grad=True)
    sums = loss_sums(logits, torch.zeros(4, 6, 7, dtype=torch.uint8, device="meta"), weights)
    (cross_entropy(sums) + dice(sums)).backward()
    assert logits.grad is not None


def test_the_weight_of_a_batch_is_the_sum_over_its_valid_pixels(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, target = batch
    weights = torch.rand(5)
    valid = target[target != IGNORE].long()
    assert int(weight_of(target)) == len(valid)
    assert torch.allclose(weight_of(target, weights), weights[valid].sum())


def test_an_all_void_target_contributes_nothing() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    sums = loss_sums(logits, torch.full((1, 4, 4), IGNORE))
    loss = cross_entropy(sums) + dice(sums)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
