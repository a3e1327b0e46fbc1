"""Scores from one confusion matrix, held against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from unet.data.labels import IGNORE
from unet.model.metrics import ConfusionMatrix


@pytest.fixture
def masks() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (6, 20, 30)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 4, truth.shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = IGNORE
    return truth, prediction


def test_scores_agree_with_torchmetrics(masks: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = masks
    matrix = ConfusionMatrix.empty(4)
    matrix.add(truth, prediction)
    given = torch.tensor(prediction), torch.tensor(truth)
    jaccard = MulticlassJaccardIndex(num_classes=4, ignore_index=IGNORE, average="none")(*given)
    f1 = MulticlassF1Score(num_classes=4, ignore_index=IGNORE, average="none")(*given)
    accuracy = MulticlassAccuracy(num_classes=4, ignore_index=IGNORE, average="micro")(*given)
    assert matrix.iou == pytest.approx(jaccard.numpy(), abs=1e-6)
    assert matrix.dice == pytest.approx(f1.numpy(), abs=1e-6)
    assert matrix.pixel_accuracy == pytest.approx(float(accuracy), abs=1e-6)
    assert matrix.mean_iou == pytest.approx(float(jaccard.mean()), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_random_masks_with_void_and_absent_classes_agree_with_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 5, IGNORE], (3, 17, 23), p=[0.4, 0.3, 0.1, 0.1, 0.1]).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, rng.choice([0, 1, 3, 5], truth.shape)).astype(np.uint8)
    prediction[prediction == IGNORE] = 0
    matrix = ConfusionMatrix.empty(7)  # 2 is hardly predicted, 3 only predicted, 4 and 6 are nowhere
    matrix.add(truth, prediction)
    given = torch.tensor(prediction), torch.tensor(truth)
    precision = MulticlassPrecision(num_classes=7, ignore_index=IGNORE, average="none")(*given).numpy()
    recall = MulticlassRecall(num_classes=7, ignore_index=IGNORE, average="none")(*given).numpy()
    weighted = MulticlassJaccardIndex(num_classes=7, ignore_index=IGNORE, average="weighted")(*given)
    predicted, present = matrix.counts.sum(0) > 0, matrix.counts.sum(1) > 0
    assert matrix.precision[predicted] == pytest.approx(precision[predicted], abs=1e-6)
    assert matrix.recall[present] == pytest.approx(recall[present], abs=1e-6)
    assert np.isnan(matrix.precision).tolist() == (~predicted).tolist()
    assert np.isnan(matrix.recall).tolist() == (~present).tolist()
    assert present.sum() == 4
    assert matrix.mean_class_accuracy == pytest.approx(recall[present].mean(), abs=1e-6)
    assert matrix.frequency_weighted_iou == pytest.approx(float(weighted), abs=1e-6)


def test_counts_do_not_depend_on_how_images_are_batched(masks: tuple[np.ndarray, np.ndarray]) -> None:
    whole, parts = ConfusionMatrix.empty(4), ConfusionMatrix.empty(4)
    whole.add(*masks)
    for truth, prediction in zip(*masks, strict=True):
        parts.add(truth, prediction)
    assert (whole.counts == parts.counts).all()
    assert whole.counts.sum() == (masks[0] != IGNORE).sum()


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    matrix = ConfusionMatrix(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert np.isnan(matrix.iou[2])
    assert matrix.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_no_pixel_at_all_scores_nan() -> None:
    matrix = ConfusionMatrix.empty(2)
    assert np.isnan(matrix.pixel_accuracy)
    assert np.isnan(matrix.mean_iou)
    assert np.isnan(matrix.mean_class_accuracy)
    assert np.isnan(matrix.frequency_weighted_iou)
