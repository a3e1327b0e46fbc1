"""The bootstrap of a difference of scores: what a loop gives, and intervals that hold what they should."""

import numpy as np
import numpy.typing as npt
import pytest

from unet.model import bootstrap
from unet.model.bootstrap import Difference, Overlap, iou_differences
from unet.model.metrics import ConfusionMatrix, Counts


def matrices(images: int, classes: int, accuracy: float, seed: int, truth_seed: int = 1000) -> Counts:
    """Confusion matrices of images, [N, C, C]: 500 pixels each, of which so many are predicted rightly."""
    truths, rng = np.random.default_rng(truth_seed), np.random.default_rng(seed)
    found = np.zeros((images, classes, classes), np.int64)
    for image in found:
        truth = truths.choice(classes, 500, p=truths.dirichlet(np.ones(classes)))
        skill = rng.beta(20 * accuracy, 20 * (1 - accuracy))  # some images are harder than others
        prediction = np.where(rng.random(500) < skill, truth, rng.integers(0, classes, 500))
        np.add.at(image, (truth, prediction), 1)
    return found


def overlap_of(images: Counts) -> Overlap:
    counted = [ConfusionMatrix(counts) for counts in images]
    return Overlap(np.array([one.intersection for one in counted]), np.array([one.union for one in counted]))


def test_it_is_what_a_loop_that_adds_confusion_matrices_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five images, where the class 2 is in one alone, and 3 in none: in some resamples they are nowhere."""
    new, old = (matrices(5, 4, accuracy, seed) for accuracy, seed in ((0.9, 1), (0.6, 2)))
    for part in (new, old):
        part[:, 3], part[:, :, 3], part[1:, 2], part[1:, :, 2] = 0, 0, 0, 0
    monkeypatch.setattr(bootstrap, "WEIGHTS", 5 * 70)  # so that they come in several parts
    mean, by_class = iou_differences(overlap_of(new), overlap_of(old), resamples=300, seed=7)
    rng = np.random.default_rng(7)
    drawn = list[npt.NDArray[np.float64]]()
    for _ in range(300):
        times = rng.multinomial(5, np.full(5, 1 / 5))
        ours, theirs = (
            ConfusionMatrix(sum(n * one for n, one in zip(times, images, strict=True))) for images in (new, old)
        )
        drawn.append(np.array([ours.mean_iou - theirs.mean_iou, *(ours.iou - theirs.iou)]))
    ours, theirs = (ConfusionMatrix(images.sum(0)) for images in (new, old))
    expected = [ours.mean_iou - theirs.mean_iou, *(ours.iou - theirs.iou)]
    for found, value, column in zip([mean, *by_class[:3]], expected, np.array(drawn).T, strict=False):
        assert found.value == pytest.approx(value, abs=1e-12)
        assert (found.low, found.high) == pytest.approx(tuple(np.nanquantile(column, [0.025, 0.975])), abs=1e-12)
    assert np.isnan(np.array(drawn)[:, 3]).any()
    assert str(by_class[3]) == str(Difference(np.nan, np.nan, np.nan))


def test_the_intervals_of_equal_models_hold_0_and_those_of_a_better_one_do_not() -> None:
    """Of 100 pairs of models with the same accuracy at least 90; of as many that differ by much none."""
    held, held_by_better = 0, 0
    for seed in range(100):
        first, second, better = (
            overlap_of(matrices(40, 3, accuracy, 3 * seed + place, truth_seed=seed))
            for place, accuracy in enumerate((0.7, 0.7, 0.85))
        )
        mean, _ = iou_differences(first, second, resamples=2000, seed=seed)
        held += mean.low <= 0 <= mean.high
        mean, _ = iou_differences(better, second, resamples=2000, seed=seed)
        held_by_better += mean.low <= 0
    assert 90 <= held < 100
    assert held_by_better == 0


def test_a_model_against_itself_differs_by_nothing() -> None:
    one = overlap_of(matrices(8, 3, 0.7, 1))
    mean, by_class = iou_differences(one, one)
    assert [mean, *by_class] == [Difference(0, 0, 0)] * 4
