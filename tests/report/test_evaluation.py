"""The page of an evaluation: the worst images come first, and any set gives a small page."""

import math

import numpy as np
import pytest

from tests.report.evaluation_page import report, score
from tests.report.html_page import MANY_LABELS, Page, assert_alone, noise
from unet.model.metrics import ConfusionMatrix
from unet.report.evaluation import MAX_IMAGES
from unet.sample.things import LABELS


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report())


def test_the_page_is_one_file_that_needs_no_network() -> None:
    assert_alone(report(), "images.parquet")


def test_both_ends_are_shown(page: Page) -> None:
    assert page.all("section", "id") == [
        *("classes", "against-another-model", "confusions", "images", "worst-images", "best-images")
    ]
    assert len(page.pictures()) == 8


def test_another_model_is_beside_it_with_the_difference_and_its_interval(page: Page) -> None:
    assert "of runs/<old>/model" in page.text
    assert "differs by +1.23 points (95%: +0.23 to +2.23)" in page.text
    start = page.cells.index("Other")
    assert page.cells[start + 4 :][2:6] == ["50.0%", "+1.23", "+0.23", "+2.23"]
    assert "against-another-model" not in Page(report(against=None)).all("section", "id")


def test_images_come_worst_first_and_those_without_a_score_last(page: Page) -> None:
    start = page.cells.index("b.png")
    assert page.cells[start:][:5] == ["b.png", "25.0%", "90.0%", "96 x 128", "12,000"]
    assert [cell for cell in page.cells if cell.endswith(".png")] == ["b.png", "a.png", "void.png"]
    assert page.all("th", "aria-sort").count("ascending") == 1


def test_a_large_set_lists_its_worst_images_and_links_to_all() -> None:
    images = [score(f"{i}.png", i / 5000) for i in range(5000)]
    page = Page(report(images=images))
    assert [cell for cell in page.cells if cell.endswith(".png")] == [f"{i}.png" for i in range(MAX_IMAGES)]
    assert f"The {MAX_IMAGES} worst of 5,000 images" in page.text


def test_nothing_scored_still_gives_a_page() -> None:
    empty = ConfusionMatrix.empty(len(LABELS.classes))
    page = Page(report(confusion=empty, images=[], worst=[], best=[], against=None))
    assert "n/a" in page.text
    assert page.all("section", "id") == ["classes", "confusions"]
    Page(report(confusion=empty, images=[score("void.png", math.nan)], against=None))


def test_any_set_gives_a_page_below_5_mb() -> None:
    rng = np.random.default_rng(0)
    samples = [noise(f"<&{i}" * 300, rng) for i in range(4)]
    html = report(
        labels=MANY_LABELS,
        confusion=ConfusionMatrix(rng.integers(0, 9, (250, 250))),
        images=[score("<&'日本" * 200, i / 1e5) for i in range(100_000)],
        worst=samples,
        best=samples,
        against=None,
    )
    assert_alone(html, "images.parquet")
    page = Page(html)
    assert "more are left out" in page.text
    assert {"worst-images", "best-images"} <= set(page.all("section", "id"))
