"""The page of a preview: what changes most comes first, and any preview gives a small page."""

import numpy as np
import pytest

from tests.report.html_page import MANY_LABELS, Page, assert_alone, noise
from tests.report.preview_page import report, row, summary
from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import draw_panels
from unet.report.preview import MAX_IMAGES
from unet.sample.things import LABELS


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report())


def test_the_page_is_one_file_that_needs_no_network(page: Page) -> None:
    assert_alone(report(), "preview.parquet", "summary.json")
    sections = ["classes", "changes", "images", "images-that-change-most", "not-compared"]
    assert page.all("section", "id") == sections
    assert len(page.pictures()) == 8


def test_the_headline_says_what_changes_and_what_it_takes(page: Page) -> None:
    for text in ("0.25", "69.4", "Only in the old masks: <tram>.", "n/a before, 87.50% after"):
        assert text in page.text


def test_images_that_change_most_come_first_and_each_that_is_not_compared_says_why(page: Page) -> None:
    assert [cell for cell in page.cells if cell.endswith(".png")] == ["scene-0.png", "scene-1.png", "c.png"]
    start = page.cells.index("c.png")
    assert page.cells[start : start + 3] == ["c.png", "mask_missing", "is not there"]


def test_the_slider_shows_the_new_mask_over_the_old_one(page: Page) -> None:
    assert page.all("div", "data-over").count("2") == 2
    assert "Compare with the new mask" in page.text
    before, after, changes = page.pictures()[1:4]
    differs = (before != after).any(-1)
    assert ((changes == (230, 159, 0)).all(-1) == differs).all()
    assert differs.any()


def test_a_preview_without_a_compared_image_gives_a_page() -> None:
    nothing = summary(ConfusionMatrix.empty(len(LABELS.classes)), counts={"mask_missing": 1})
    page = Page(report(summary=nothing, rows=[row("c.png", None, "mask_missing")], panels=[]))
    assert page.all("section", "id") == ["classes", "not-compared"]
    assert "n/a" in page.text


def test_any_preview_gives_a_page_below_5_mb() -> None:
    rng = np.random.default_rng(0)
    html = report(
        summary=summary(ConfusionMatrix(rng.integers(0, 9, (250, 250)))),
        labels=MANY_LABELS,
        rows=[row("<&'日本" * 200, i / 1e5) for i in range(20_000)]
        + [row("<&" * 300, None, "failed", "why " * 300) for _ in range(20_000)],
        panels=[(draw_panels(noise(f"<&{i}" * 300, rng), MANY_LABELS), 0.5) for i in range(12)],
    )
    assert_alone(html, "preview.parquet", "summary.json")
    page = Page(html)
    assert "more are left out" in page.text
    assert f"The {MAX_IMAGES} of 20,000 images" in page.text
