"""The report of a training run: what a browser would need is there, and awkward runs still give a page."""

import io
import math
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unet.labels import IGNORE, Label, LabelSet
from unet.metrics import ConfusionMatrix
from unet.report import Sample, training_report

LABELS = LabelSet(
    (
        Label(value=0, name="<b>road & co", color=(200, 0, 0)),
        Label(value=1, name="$sky$ \\of", color=(0, 200, 0)),
        Label(value=2, name="a sign of a class whose name is long", color=(0, 0, 200)),
        Label(value=3, name="void", color=(0, 0, 0), ignore=True),
    )
)


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(files["index.html"].decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str | None]:
        return [attributes.get(attribute) for name, attributes in self.tags if name == tag]


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    scores = dict.fromkeys(LABELS.names, 0.1 * number)
    row: dict[str, Any] = {"epoch": number, "step": 10 * number, "train_loss": 1 / number, "val_loss": 1.2 / number}
    row |= {"val_pixel_accuracy": 0.2 * number, "val_miou": 0.1 * number, "val_mdice": 0.15 * number}
    row |= {"val_iou": scores, "val_dice": scores, "learning_rate": 1e-3, "images_per_second": 9.0, "seconds": 1.0}
    return row | changes


def sample(name: str = "a/b.jpg", size: tuple[int, int] = (24, 32)) -> Sample:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, size, dtype=np.uint8)
    truth[0] = IGNORE
    prediction = np.where(truth == IGNORE, 0, truth).astype(np.uint8)
    return Sample(name=name, image=rng.integers(0, 256, (*size, 3), dtype=np.uint8), truth=truth, prediction=prediction)


def report(**changes: Any) -> dict[str, bytes]:
    given: dict[str, Any] = {
        "title": "a run",
        "facts": {"Parameters": "1,234"},
        "labels": LABELS,
        "history": [epoch(1), epoch(2), epoch(3)],
        "confusion": ConfusionMatrix(np.array([[5, 1, 0], [2, 8, 0], [0, 0, 0]])),
        "samples": [sample()],
    }
    return training_report(**given | changes)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return report()


def strips_of(*samples: Sample) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    files = report(samples=samples)
    return [np.asarray(Image.open(io.BytesIO(files[name]))) for name in sorted(files) if name.startswith("sample")]


def test_every_picture_the_page_links_to_is_there_and_no_other(files: dict[str, bytes]) -> None:
    page = Page(files)
    shown = page.all("img", "src")
    assert sorted(map(str, shown)) == sorted(files.keys() - {"index.html"})
    assert page.all("a", "href") == shown
    for name in map(str, shown):
        with Image.open(io.BytesIO(files[name]), formats=["PNG"]) as picture:
            picture.load()


def test_every_picture_has_words_and_a_size(files: dict[str, bytes]) -> None:
    page = Page(files)
    for attribute in ("alt", "width", "height"):
        assert all(page.all("img", attribute))


def test_the_page_needs_neither_network_nor_script(files: dict[str, bytes]) -> None:
    page = files["index.html"].decode()
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_text_from_outside_is_escaped() -> None:
    name = '"><img src=x>'
    files = report(title=name, facts={name: name}, samples=[sample(name)])
    page = Page(files)
    assert "<b>" not in files["index.html"].decode()
    assert "x" not in page.all("img", "src")
    assert page.text.count(name) == 5  # title, heading, both cells of the fact, sample
    assert LABELS.names[0] in page.text


def test_the_headline_is_of_the_best_epoch() -> None:
    text = Page(report(history=[epoch(1), epoch(2, val_miou=0.5), epoch(3, val_miou=0.5)])).text
    assert "50.0%" in text
    assert "2 of 3" in text


def test_one_epoch_gives_a_page() -> None:
    assert "1 of 1" in Page(report(history=[epoch(1)])).text


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_values_that_are_missing_leave_gaps(nothing: float | None) -> None:
    gone = dict.fromkeys(("train_loss", "val_loss", "val_pixel_accuracy", "val_miou", "val_mdice"), nothing)
    absent = dict.fromkeys(LABELS.names, nothing)
    assert "2 of 2" in Page(report(history=[epoch(1, **gone), epoch(2, val_iou=absent)])).text
    assert "n/a" in Page(report(history=[epoch(1, **gone, val_iou=None)])).text


def test_a_run_without_samples_has_no_section_for_them() -> None:
    assert "Samples" not in Page(report(samples=[])).text


def test_many_classes_and_no_counts_still_give_a_page() -> None:
    labels = LabelSet(tuple(Label(value=i, name=f"class {i}", color=(i, 0, 0)) for i in range(70)))
    assert "confusion.png" in report(labels=labels, confusion=ConfusionMatrix.empty(70), samples=[])


def test_panels_are_legible_whatever_the_size_of_the_image() -> None:
    panels = {(96, 128): (288, 384), (720, 960): (360, 480), (300, 200): (300, 200), (1, 2000): (1, 480)}
    strips = strips_of(*(sample(size=size) for size in panels))
    assert [strip.shape[:2] for strip in strips] == [(h, 4 * w + 3 * 6) for h, w in panels.values()]


def test_small_images_are_enlarged_without_blur() -> None:
    shown = sample(size=(48, 48))
    np.testing.assert_array_equal(strips_of(shown)[0][::10, :480:10, :3], shown.image)


def test_errors_stand_out_from_dim_correct_and_flat_unscored_pixels() -> None:
    truth = np.array([[0, 1, IGNORE]], np.uint8)
    shown = Sample(
        name="a", image=np.full((1, 3, 3), 100, np.uint8), truth=truth, prediction=np.zeros((1, 3), np.uint8)
    )
    correct, wrong, unscored = strips_of(shown)[0][0, -480::160, :3].tolist()
    assert correct == [45, 45, 45]
    assert wrong == [230, 159, 0]
    assert unscored == [176, 180, 186]
    assert "Errors, 50.0%" in Page(report(samples=[shown])).text
