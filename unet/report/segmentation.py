"""The page of a segmentation run: headline, facts, what became of the objects, a contact sheet, classes, failures.

A page is bytes by file name, index.html alone; the caller stores it beside report.parquet and summary.json, which it
links to. Whatever was listed and however many failed, it stays below 5 MB.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unet.data.labels import LabelSet
from unet.report.page import contact_sheet, facts_list, headline, legend, pair, percent, render_page, shortened
from unet.report.plots import Mark, bar_plot
from unet.report.score_tables import class_cells
from unet.report.tables import Cell, count_cell, sortable_table

Failure = tuple[str, str, str]
"""Key, status and reason."""

MEANING = {
    "done": "segmented in this run",
    "unchanged": "with an up-to-date mask already",
    "failed": "could not be segmented",
    "failed_before": "failed in an earlier run, not tried again",
    "skipped": "not taken as an image",
    "changed": "replaced while the run went on; left to the next run",
    "vanished": "deleted while the run went on",
}
"""What each status says of its objects, in the order of the page."""

FAILURES, KEY_LENGTH, REASON_LENGTH = 200, 1024, 300
"""Rows of the table of failures, and how much of a key and of a reason it shows."""
WINDOWS = 60
"""Most windows of time in the plot of throughput."""


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A picture of the contact sheet."""

    key: str
    """Key of the image."""
    jpeg: bytes
    """The mask over the image, a JPEG of at most 320 pixels a side."""


def segmentation_report(
    *,
    title: str,
    facts: Mapping[str, str],
    counts: Mapping[str, int],
    images_per_second: float | None,
    labels: LabelSet,
    class_pixels: Sequence[int],
    throughput: Sequence[tuple[float, int]],
    thumbnails: Sequence[Thumbnail],
    failures: Sequence[Failure],
    failures_total: int,
) -> dict[str, bytes]:
    """Files of the page by name relative to its folder: index.html.

    `facts` are shown as they are, label and value. `counts` are objects by status. `class_pixels` are of the masks
    written in this run, by class index. `throughput` is seconds since the start and images done by then. `thumbnails`
    are a sample of the images done, `failures` some of the `failures_total` there were.
    """
    figures = {
        "Done": f"{counts.get('done', 0):,}",
        "Failed": f"{counts.get('failed', 0):,}",
        "Unchanged": f"{counts.get('unchanged', 0):,}",
        "Images per second": _rate(images_per_second),
    }
    drawn = [_class_shares(labels, class_pixels)] if sum(class_pixels) else []
    if windows := _windows(throughput):
        drawn.append(_speed(*windows, images_per_second))
    masks = [(thumbnail.jpeg, thumbnail.key) for thumbnail in thumbnails]
    sections = {
        "Objects": "\n".join(_objects(counts)),
        "Masks": "\n".join((*_masks(len(masks), counts, labels), contact_sheet(masks))) if masks else "",
        "Classes and speed": pair(*drawn) if drawn else "",
        "Failures": "\n".join(_failures(failures, failures_total)) if failures_total else "",
    }
    return {"index.html": render_page(title, "Segmentation", [headline(figures), facts_list(facts)], sections)}


def _objects(counts: Mapping[str, int]) -> Iterable[str]:
    known = {status: count for status, count in counts.items() if count}
    if not known:
        yield "<p>Nothing was listed, so nothing was to be done.</p>"
    elif known.keys() <= {"unchanged", "failed_before", "skipped"}:
        yield "<p>Nothing was new, so no mask was written.</p>"
    order = sorted(known, key=lambda status: [*MEANING, status].index(status))
    rows = [(status, count_cell(known[status]), MEANING.get(status, "")) for status in order]
    yield (
        '<p>Every object that was listed has a row in <a href="report.parquet">report.parquet</a>; '
        'the figures of this page are in <a href="summary.json">summary.json</a>.</p>'
    )
    yield sortable_table("Objects by status", ("Status", "Objects", "Meaning"), rows) if rows else ""


def _masks(shown: int, counts: Mapping[str, int], labels: LabelSet) -> Iterable[str]:
    done = counts.get("done", shown)
    if shown < done:
        yield f"<p>{shown:,} of the {done:,} images done, drawn at random.</p>"
    yield legend((label.name, label.color) for label in labels.classes)


def _failures(failures: Sequence[Failure], total: int) -> Iterable[str]:
    shown = failures[:FAILURES]
    rows = ((shortened(k, KEY_LENGTH), status, shortened(why, REASON_LENGTH)) for k, status, why in shown)
    yield sortable_table("Failures", ("Key", "Status", "Reason"), rows)
    if more := total - len(shown):
        yield f'<p>{more:,} more in <a href="report.parquet">report.parquet</a>.</p>'


def _class_shares(labels: LabelSet, pixels: Sequence[int]) -> str:
    shares = (np.array(pixels) / sum(pixels)).tolist()
    cells = [Cell(text=percent(share), value=share, bar=share / max(shares)) for share in shares]
    rows = zip(class_cells(labels), cells, map(count_cell, pixels), strict=True)
    return sortable_table("Share of pixels by class", ("Class", "Share", "Pixels"), rows)


def _windows(throughput: Sequence[tuple[float, int]]) -> tuple[list[float], list[float]] | None:
    """Images per second in equal windows of time and the windows' edges in seconds, or None where no time passed."""
    times, done = np.array(sorted({(0.0, 0), *throughput}), float).T
    if times[-1] <= 0:
        return None
    edges = np.linspace(0, times[-1], min(WINDOWS, len(set(times)) - 1) + 1)
    rates = np.diff(np.interp(edges, times, done)) / np.diff(edges)
    return rates.tolist(), edges.tolist()


def _speed(rates: Sequence[float], edges: Sequence[float], overall: float | None) -> str:
    seconds, unit = next((s, unit) for s, unit in _UNITS if edges[-1] >= 2 * s or s == 1)
    level = None if overall is None else Mark(overall, f"whole run: {_rate(overall)}")
    places = [edge / seconds for edge in edges]
    return bar_plot("Images per second", places, rates, x_name=f"{unit} since the start", level=level)


_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


def _rate(images_per_second: float | None) -> str:
    if images_per_second is None:
        return "n/a"
    return f"{images_per_second:,.1f}" if images_per_second >= 10 else f"{images_per_second:.2f}"
