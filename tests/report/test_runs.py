"""The page of an output's runs."""

import pytest

from tests.report.html_page import Page, assert_alone
from tests.report.runs_page import entry, report
from unet.report.runs import COLUMNS, MAX_RUNS_SHOWN, runs_page


def rows(html: bytes) -> list[list[str]]:
    cells, width = Page(html).cells, len(COLUMNS)
    return [cells[start : start + width] for start in range(width, len(cells), width)]


def test_the_page_needs_no_network_and_leads_to_the_page_of_each_run() -> None:
    assert_alone(report(3), *(f"runs/{entry(number)['run']}/index.html" for number in (1, 2, 3)))


def test_the_newest_run_comes_first_with_what_became_of_it() -> None:
    counts = {"done": 1234, "unchanged": 5, "failed": 2, "vanished": 1, "changed": 1}
    html = runs_page(
        "masks", [entry(2, counts=counts, complete=False, images_per_second=12.34, seconds=100, drift=0.3), entry(1)]
    )
    expected = ["2026-01-03 02:00", "1,234", "4", "12.3", "100.0", "5", "0.300", "early", "00ababababab"]
    assert rows(html)[0] == expected
    assert rows(html)[1][6] == "n/a"


def test_drift_is_plotted_where_it_was_measured_and_a_single_run_has_no_plot() -> None:
    assert "Drift: highest PSI" in Page(report()).all("svg", "aria-label")
    assert "Drift: highest PSI" not in Page(report(5)).all("svg", "aria-label")
    assert Page(report(1)).all("svg", "aria-label") == []


def test_of_many_runs_the_newest_are_shown_and_the_others_counted() -> None:
    html = report(MAX_RUNS_SHOWN + 7)
    assert len(rows(html)) == MAX_RUNS_SHOWN
    assert "7 older ones are left out" in Page(html).text


@pytest.mark.parametrize("run", ["<script>", "nightly", ""])
def test_a_name_of_another_kind_is_shown_as_text(run: str) -> None:
    page = Page(report(2, run=run))
    assert run in page.cells
    assert [tag for tag, _ in page.tags].count("script") == 1
