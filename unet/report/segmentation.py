"""The page of a segmentation run: headline, facts, what became of the objects, a contact sheet, classes, failures.

The caller stores it beside report.parquet and summary.json, which it links to. Whatever was listed and however many
failed, it stays below 5 MB.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unet.data.drift import Drift
from unet.data.labels import LabelSet
from unet.report.drift import describe_drift, drift_section
from unet.report.page import contact_sheet, legend, render_page, side_by_side, truncate_middle
from unet.report.plots import ReferenceLine, bar_plot
from unet.report.score_tables import class_cells
from unet.report.tables import count_cell, ratio_cell, sortable_table

Failure = tuple[str, str, str]
"""Key, status and reason."""
Thumbnail = tuple[str, bytes]
"""Key of an image, and its mask drawn over it: a JPEG of at most 320 pixels a side."""

STATUS_MEANINGS = {
    "done": "segmented in this run",
    "unchanged": "with an up-to-date mask already",
    "failed": "could not be segmented",
    "failed_before": "failed in an earlier run, not tried again",
    "skipped": "not taken as an image",
    "changed": "replaced while the run went on; left to the next run",
    "vanished": "deleted while the run went on",
}
"""What each status means for its objects, in the order of the page."""
LOST = ("failed", "changed", "vanished")
"""Statuses of objects that were to be segmented and have no mask."""

MAX_FAILURES, KEY_LENGTH, REASON_LENGTH = 200, 1024, 300
"""Rows of the table of failures, and how much of a key and of a reason it shows."""
MAX_ENDINGS = 5
"""Endings of names that are not looked at, on the terminal and on the page."""
MAX_INTERVALS = 60
"""Most bars in the plot of throughput."""


def segmentation_report(
    summary: Mapping[str, Any],
    *,
    labels: LabelSet,
    class_pixels: Sequence[int],
    throughput: Sequence[tuple[float, int]],
    thumbnails: Sequence[Thumbnail],
    failures: Sequence[Failure],
    drift: Drift | None = None,
) -> bytes:
    """Return the page as HTML.

    `summary` is what summary.json will say. `class_pixels` are of the masks written in this run, by class index.
    `throughput` is seconds since the start and images done by then. `thumbnails` are a sample of the images done,
    `failures` some of those there were. `drift` is None where it is not known.
    """
    counts = summary["counts"]
    images_per_second = summary["images_per_second"] if counts.get("done") else None
    headline = {
        "Done": f"{counts.get('done', 0):,}",
        "Failed": f"{counts.get('failed', 0):,}",
        "Unchanged": f"{counts.get('unchanged', 0):,}",
        "Images per second": format_rate(images_per_second),
    }
    figures = [_class_shares(labels, class_pixels)] if sum(class_pixels) else []
    if intervals := _rates_by_interval(throughput):
        figures.append(_throughput_plot(*intervals, images_per_second))
    masks = [(jpeg, key) for key, jpeg in thumbnails]
    failed = sum(counts.get(status, 0) for status in LOST)
    sections = {
        "Objects": "\n".join(_objects(counts)),
        "Masks": "\n".join((*_masks(len(masks), counts, labels), contact_sheet(masks))) if masks else "",
        "Classes and speed": side_by_side(*figures) if figures else "",
        "Drift": "" if drift is None else drift_section(drift, labels),
        "Failures": "\n".join(_failures(failures, failed)) if failed else "",
    }
    return render_page(summary["run"], "Segmentation", headline, _facts_of(summary), sections)


def _objects(counts: Mapping[str, int]) -> Iterable[str]:
    present = {status: count for status, count in counts.items() if count}
    if not present:
        yield "<p>Nothing was listed, so nothing was to be done.</p>"
    elif present.keys() <= {"unchanged", "failed_before", "skipped"}:
        yield "<p>Nothing was new, so no mask was written.</p>"
    order = sorted(present, key=lambda status: [*STATUS_MEANINGS, status].index(status))
    rows = [(status, count_cell(present[status]), STATUS_MEANINGS.get(status, "")) for status in order]
    yield (
        '<p>Every object that was listed has a row in <a href="report.parquet">report.parquet</a>; '
        'the figures of this page are in <a href="summary.json">summary.json</a>.</p>'
    )
    yield sortable_table("Objects by status", ("Status", "Objects", "Meaning"), rows) if rows else ""


def _masks(thumbnails: int, counts: Mapping[str, int], labels: LabelSet) -> Iterable[str]:
    done = counts.get("done", thumbnails)
    if thumbnails < done:
        yield f"<p>{thumbnails:,} of the {done:,} images done, drawn at random.</p>"
    yield legend((label.name, label.color) for label in labels.classes)


def _failures(failures: Sequence[Failure], total: int) -> Iterable[str]:
    rows = [
        (truncate_middle(key, KEY_LENGTH), status, truncate_middle(reason, REASON_LENGTH))
        for key, status, reason in failures[:MAX_FAILURES]
    ]
    yield sortable_table("Failures", ("Key", "Status", "Reason"), rows)
    if more := total - len(rows):
        yield f'<p>{more:,} more in <a href="report.parquet">report.parquet</a>.</p>'


def _class_shares(labels: LabelSet, pixels: Sequence[int]) -> str:
    shares = (np.array(pixels) / sum(pixels)).tolist()
    cells = [ratio_cell(share, bar=share / max(shares)) for share in shares]
    rows = zip(class_cells(labels), cells, map(count_cell, pixels), strict=True)
    return sortable_table("Share of pixels by class", ("Class", "Share", "Pixels"), rows)


def _rates_by_interval(throughput: Sequence[tuple[float, int]]) -> tuple[list[float], list[float]] | None:
    """Return images per second in intervals of one length, and their edges in seconds; None if no time passed."""
    times, done = np.array(sorted({(0.0, 0), *throughput}), float).T
    if times[-1] <= 0:
        return None
    edges = np.linspace(0, times[-1], min(MAX_INTERVALS, len(set(times)) - 1) + 1)
    rates = np.diff(np.interp(edges, times, done)) / np.diff(edges)
    return rates.tolist(), edges.tolist()


def _throughput_plot(rates: Sequence[float], edges: Sequence[float], overall: float | None) -> str:
    seconds, unit = next((seconds, unit) for seconds, unit in _UNITS if edges[-1] >= 2 * seconds or seconds == 1)
    line = None if overall is None else ReferenceLine(overall, f"whole run: {format_rate(overall)}")
    times = [edge / seconds for edge in edges]
    return bar_plot("Images per second", times, rates, x_name=f"{unit} since the start", horizontal=line)


_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


def format_rate(images_per_second: float | None) -> str:
    """Return images per second in about three digits; n/a for None."""
    if images_per_second is None:
        return "n/a"
    return f"{images_per_second:,.1f}" if images_per_second >= 10 else f"{images_per_second:.2f}"


def _facts_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what the page says of a run, from its summary.json."""
    facts = {
        "Input": summary["input"],
        "Output": summary["output"],
        "Model": summary["model"],
        "Listed": f"{summary['listed']:,}",
        "Not looked at": describe_endings(summary["not_matched"], summary["not_looked_at"]),
        "Masks without an image": f"{summary['orphaned']:,}",
        "Masks removed": f"{summary['removed']:,}",
        "Read": f"{summary['bytes'] / 1e6:,.1f} MB",
        "Time": f"{summary['seconds']:,.1f} s",
    }
    if count := summary.get("no_data_pixels"):
        facts["Pixels without data"] = f"{count:,}"
    return facts | ({"Drift": describe_drift(summary["drift"])} if summary["counts"].get("done") else {})


def describe_endings(count: int, endings: Mapping[str, int]) -> str:
    """Return how many files were not looked at, and how the names of most of them end."""
    most = sorted(endings.items(), key=lambda entry: -entry[1])[:MAX_ENDINGS]
    return f"{count:,}" + (f" ({', '.join(f'{ending} {number:,}' for ending, number in most)})" if most else "")
