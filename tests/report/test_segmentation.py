"""The page of a segmentation run: what a browser would need is there, and awkward runs still give a page."""

from typing import Any

import numpy as np
import pytest

from tests.report.html_page import Page, assert_alone
from tests.report.segmentation_page import STATUSES, report, thumbnail
from unet.data.drift import MIN_IMAGES, Drift, ImageStatistics, histograms_of
from unet.data.image import encode_image
from unet.data.labels import Label, LabelSet
from unet.report.drift import describe_drift
from unet.report.segmentation import MAX_FAILURES, MAX_INTERVALS
from unet.sample.things import LABELS

BESIDE = {"report.parquet", "summary.json"}
"""What else lies in the folder of a run."""

HOSTILE = "<script>alert('\"&$title')</script>\x00\n\u202egpj.\udcff/../" + "ü" * 900
NOTHING: dict[str, Any] = {
    "class_pixels": [0] * len(LABELS.classes),
    "throughput": [],
    "thumbnails": [],
    "failures": [],
}


@pytest.fixture(scope="module")
def html() -> bytes:
    return report()


def test_the_page_is_one_file_that_needs_no_network(html: bytes) -> None:
    assert_alone(html, *BESIDE)
    assert len(Page(html).pictures()) == 2


def test_the_page_tells_what_became_of_the_objects(html: bytes) -> None:
    page = Page(html)
    assert "1,204" in page.text
    assert "12.3" in page.text
    shown = {status: page.cells[page.cells.index(status) + 1].split()[0] for status in STATUSES if STATUSES[status]}
    assert shown == {status: f"{count:,}" for status, count in STATUSES.items() if count}
    assert "changed" not in page.cells  # nothing was


@pytest.mark.parametrize("key", [HOSTILE, "a" * 1024, "日本/図 1+%?#.png", "", " "])
def test_keys_of_any_kind_are_shown_as_text(key: str) -> None:
    failures = [(key, "failed", key), (key, "failed", "")]
    page = Page(report(run=key, input=key, thumbnails=[thumbnail(key)], failures=failures, counts={"failed": 2}))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "\u202e" not in page.text
    assert key[:20].split("'")[0] in page.text


def test_a_long_key_is_cut_in_its_middle_and_whole_in_its_title() -> None:
    key = "2026/" + "x" * 200 + "/0001.jpg"
    page = Page(report(thumbnails=[thumbnail(key)]))
    assert page.all("figcaption", "title") == [key]
    assert key not in page.text
    assert "…" in page.text
    assert "x/0001.jpg" in page.text


def test_failures_beyond_a_page_are_left_to_the_parquet() -> None:
    failures = [(f"{i}/{HOSTILE}", "failed", HOSTILE * 10) for i in range(MAX_FAILURES + 100)]
    page = report(failures=failures, counts={"failed": 12_345})
    assert f"{12_345 - MAX_FAILURES:,} more in report.parquet" in Page(page).text
    assert Page(page).text.count("gpj") == 2 * MAX_FAILURES
    assert_alone(page, *BESIDE)


def test_a_page_that_holds_every_failure_mentions_no_more(html: bytes) -> None:
    assert "more in" not in Page(html).text


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, "Nothing was listed"),
        (dict.fromkeys(STATUSES, 0), "Nothing was listed"),
        ({"unchanged": 7, "failed_before": 1}, "Nothing was new"),
    ],
)
def test_a_run_with_nothing_to_do_says_so(counts: dict[str, int], said: str) -> None:
    page = Page(report(counts=counts, **NOTHING))
    assert said in page.text
    assert "n/a" in page.text
    assert "Failures" not in page.text


def test_a_run_that_did_something_does_not_say_that_nothing_was_new(html: bytes) -> None:
    assert "Nothing was" not in Page(html).text


@pytest.mark.parametrize("throughput", [[], [(0.0, 0)], [(0.0, 5)]])
def test_a_run_that_took_no_time_has_no_plot_of_it(throughput: list[tuple[float, int]]) -> None:
    assert "Images per second" not in Page(report(throughput=throughput)).all("svg", "aria-label")


@pytest.mark.parametrize(
    "throughput",
    [
        [(2.0, 9)],
        [(2.0, 0)],
        [(1.0, 3), (1.0, 3), (1.0, 5)],
        [(float(i), i**2) for i in range(0, 400_000, 1000)],
    ],
)
def test_awkward_times_still_give_a_plot(throughput: list[tuple[float, int]]) -> None:
    page = Page(report(throughput=throughput, counts={}, thumbnails=[]))
    assert "Images per second" in page.all("svg", "aria-label")
    assert 0 < page.all("rect", "class").count("bar first") <= MAX_INTERVALS


def test_drift_is_shown_by_channel_beside_training() -> None:
    before, now = (ImageStatistics.empty(3, len(LABELS.classes)) for _ in range(2))
    for value in range(MIN_IMAGES):
        for part, color in ((before, (128 + value,) * 3), (now, (128 + value, 128 + value, 8))):
            part.add_image(histograms_of(np.full((4, 4, 3), color, np.uint8)))
            part.add_mask(np.arange(11), 0.9)
    drift = Drift(before, now, ("red", "green", "blue"), limit=0.25, confidence_limit=0.2)
    page = Page(report(drift=drift, counts={"done": MIN_IMAGES}))
    titles = [title for title in page.all("svg", "aria-label") if "PSI" in title]
    assert [title.split(",")[0] for title in titles] == ["Red", "Green", "Blue"]
    assert titles[0] == "Red, PSI 0.00"
    assert "Drifted: blue." in page.text
    assert page.all("polyline", "class").count("line second") == 3
    assert "Classes, PSI 0.00" in page.text


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        (None, "unknown; the model does not say"),
        ({}, "none; PSI up to 0.20 (blue), confidence 81.0% (90.0% in validation), of 1,000 images"),
        ({"drifted": ["blue", "classes"]}, "blue, classes; PSI up to"),
        ({"judged": ["red", "blue"]}, "none, with no verdict on the masks (12 in validation); PSI up to 0.20 (blue)"),
        ({"judged": [], "images": 5}, "no verdict on fewer than 30 images, of the run or of training; PSI up to"),
        ({"reference_confidence": None}, "none; PSI up to 0.20 (blue), of 1,000 images"),
    ],
)
def test_what_is_found_of_drift_is_a_line(drift: dict[str, Any] | None, said: str) -> None:
    known = {"images": 1000, "reference_masks": 12, "psi": {"red": 0.1, "blue": 0.2}, "drifted": []}
    known |= {"confidence": 0.81, "reference_confidence": 0.9, "judged": ["red", "blue", "classes", "confidence"]}
    assert describe_drift(None if drift is None else known | drift).startswith(said)


def test_classes_have_their_shares_and_pixels() -> None:
    pixels = np.zeros(len(LABELS.classes), int)
    pixels[[0, 3]] = 1_000_000, 3_000_000
    cells = Page(report(class_pixels=pixels.tolist())).cells
    assert cells[cells.index("sky") :][:3] == ["sky", "25.0%", "1,000,000"]
    assert cells[cells.index("road") :][:3] == ["road", "75.0%", "3,000,000"]


def test_many_classes_awkward_names_and_heavy_thumbnails_still_give_a_small_page() -> None:
    labels = LabelSet(
        tuple(Label(value=i, name=f"$class {i}\\of" + "x" * 500, color=(255, 255, i)) for i in range(250))
    )
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
    thumbnails = [(f"{i}" + "é" * 500, encode_image(noise, "JPEG")) for i in range(60)]
    html = report(labels=labels, class_pixels=[1] * 249 + [0], thumbnails=thumbnails)
    assert_alone(html, *BESIDE)
    assert 20 < len(Page(html).pictures()) < 60
