"""The page of a training run: what a browser would need is there, and awkward runs still give a page."""

import math

import numpy as np
import pytest

from tests.report.html_page import Page, assert_alone
from tests.report.training_page import LABELS, epoch, report, sample
from unet.data.labels import IGNORE, Label, LabelSet
from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import SamplePrediction


@pytest.fixture(scope="module")
def html() -> bytes:
    return report()


def test_the_page_is_one_file_that_needs_no_network(html: bytes) -> None:
    assert_alone(html)
    assert len(Page(html).pictures()) == 4


def test_text_from_outside_is_escaped() -> None:
    name = '"><img src=x>'
    html = report(title=name, facts={name: name}, samples=[sample(name)])
    page = Page(html)
    assert "<b>" not in html.decode()
    assert "x" not in page.all("img", "src")
    assert page.text.count(name) == 5  # title, heading, both halves of the fact, sample
    assert LABELS.names[0] in page.text


def test_the_headline_is_of_the_best_epoch() -> None:
    text = Page(report(history=[epoch(1), epoch(2, val_miou=0.5), epoch(3, val_miou=0.5)])).text
    assert "50.0%" in text
    assert "2 of 3" in text


def test_the_table_of_classes_has_the_scores_of_the_confusion_matrix(html: bytes) -> None:
    cells = Page(html).cells
    first = cells.index(LABELS.names[0])
    assert cells[first : first + 6] == [LABELS.names[0], "62.5%", "76.9%", "71.4%", "83.3%", "37.5%"]
    absent = cells.index(LABELS.names[2])
    assert cells[absent : absent + 6] == [LABELS.names[2], "n/a", "n/a", "n/a", "n/a", "0.0%"]


def test_the_largest_confusion_comes_first(html: bytes) -> None:
    cells = Page(html).cells
    start = cells.index("Taken for") + 3
    assert cells[start : start + 8] == [
        *(LABELS.names[1], LABELS.names[0], "20.0%", "2"),
        *(LABELS.names[0], LABELS.names[1], "16.7%", "1"),
    ]


def test_one_epoch_gives_a_page() -> None:
    assert "1 of 1" in Page(report(history=[epoch(1)])).text


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_values_that_are_missing_leave_gaps(nothing: float | None) -> None:
    gone = dict.fromkeys(("train_loss", "val_loss", "val_pixel_accuracy", "val_miou", "val_mdice"), nothing)
    html = report(history=[epoch(1, **gone), epoch(2)])
    assert "2 of 2" in Page(html).text or nothing == math.inf
    assert "n/a" in Page(report(history=[epoch(1, **gone, val_iou=None)])).text
    for points in Page(html).all("polyline", "points"):
        assert "nan" not in points
        assert "inf" not in points


def test_a_run_without_samples_has_no_section_for_them() -> None:
    assert "samples" not in Page(report(samples=[])).all("section", "id")


def test_a_perfect_model_has_no_table_of_confusions() -> None:
    assert "Taken for" not in Page(report(confusion=ConfusionMatrix(np.diag([3, 4, 5])))).text


def test_a_page_of_many_classes_epochs_and_noisy_samples_stays_small() -> None:
    count = 250
    labels = LabelSet(
        tuple(Label(value=i, name=f"{i} {'long ' * 200}", color=(i, i // 2, 255 - i)) for i in range(count))
    )
    rng = np.random.default_rng(0)
    noise = [
        SamplePrediction(
            name=f"{i}" + "k" * 1000,
            image=rng.integers(0, 256, (700, 700, 3), dtype=np.uint8),
            truth=rng.integers(0, count, (700, 700), dtype=np.uint8),
            prediction=rng.integers(0, count, (700, 700), dtype=np.uint8),
        )
        for i in range(6)
    ]
    history = [epoch(i, val_iou=None) for i in range(1, 20_001)]
    html = report(
        labels=labels, history=history, confusion=ConfusionMatrix(rng.integers(0, 99, (count, count))), samples=noise
    )
    assert_alone(html)
    assert "more are left out" in Page(html).text


def test_panels_are_no_larger_than_they_are_shown() -> None:
    sizes = {(96, 128): (96, 128), (720, 960): (360, 480), (300, 200): (300, 200), (1, 2000): (1, 480)}
    pictures = Page(report(samples=[sample(size=size) for size in sizes])).pictures()
    assert [picture.shape[:2] for picture in pictures] == [size for size in sizes.values() for _ in range(4)]


def test_masks_are_in_the_label_colours_and_the_image_is_itself() -> None:
    shown = sample(size=(48, 48))
    image, truth, prediction, _ = Page(report(samples=[shown])).pictures()
    np.testing.assert_array_equal(truth, LABELS.colors[shown.truth])
    np.testing.assert_array_equal(prediction, LABELS.colors[shown.prediction])
    assert image.mean() == pytest.approx(shown.image.mean(), abs=2)


def test_errors_stand_out_from_dim_correct_and_flat_unscored_pixels() -> None:
    truth = np.array([[0, 1, IGNORE]], np.uint8)
    shown = SamplePrediction(
        name="a", image=np.full((1, 3, 3), 100, np.uint8), truth=truth, prediction=np.zeros((1, 3), np.uint8)
    )
    page = Page(report(samples=[shown]))
    correct, wrong, unscored = page.pictures()[3][0].tolist()
    assert correct == pytest.approx([45, 45, 45], abs=5)
    assert wrong == [230, 159, 0]
    assert unscored == [176, 180, 186]
    assert "wrong 50.0%" in page.text
