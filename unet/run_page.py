"""The page of a segmentation run: headline, facts, what became of the objects, a contact sheet, classes, failures.

A page is bytes by file name, index.html and the pictures it shows; the caller stores them beside report.parquet and
summary.json, which it links to. Whatever was listed and however many failed, index.html stays below 2 MB.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from unet.labels import LabelSet
from unet.page import (
    Picture,
    contact_sheet,
    headline,
    legend,
    percent,
    plots,
    render_page,
    section,
    shortened,
    table,
    wide_table,
)
from unet.plots import BLUE, INK, MUTED, NEUTRAL, class_bars, empty_plot, grid, height_of, picture_of

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
class Sheet:
    """A thumbnail of the contact sheet."""

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
    sheets: Sequence[Sheet],
    failures: Sequence[Failure],
    failures_total: int,
) -> dict[str, bytes]:
    """Files of the page by name relative to its folder: index.html and the pictures it shows.

    `facts` are shown as they are, label and value. `counts` are objects by status. `class_pixels` are of the masks
    written in this run, by class index. `throughput` is seconds since the start and images done by then. `sheets` are
    a sample of the images done, `failures` some of the `failures_total` there were.
    """
    figures = {
        "Done": f"{counts.get('done', 0):,}",
        "Failed": f"{counts.get('failed', 0):,}",
        "Unchanged": f"{counts.get('unchanged', 0):,}",
        "Images per second": _rate(images_per_second),
    }
    drawn = [_class_shares(labels, class_pixels)] if sum(class_pixels) else []
    if windows := _windows(throughput):
        drawn.append(_speed(*windows, images_per_second, height_of(len(labels.classes))))
    names = [f"sheet-{i:03}.jpg" for i in range(1, len(sheets) + 1)]
    masks = [(name, sheet.jpeg, sheet.key) for name, sheet in zip(names, sheets, strict=True)]
    parts = [
        headline(figures),
        table(facts),
        section("Objects", *_objects(counts)),
        section("Masks", *_masks(len(masks), counts, labels), contact_sheet(masks)) if masks else "",
        section("Classes and speed", plots(drawn)) if drawn else "",
        section("Failures", *_failures(failures, failures_total)) if failures_total else "",
    ]
    pictures = {picture.name: picture.png for picture in drawn} | {name: data for name, data, _ in masks}
    return {"index.html": render_page(title, parts), **pictures}


def _objects(counts: Mapping[str, int]) -> Iterable[str]:
    known = {status: count for status, count in counts.items() if count}
    if not known:
        yield "<p>Nothing was listed, so nothing was to be done.</p>"
    elif known.keys() <= {"unchanged", "failed_before", "skipped"}:
        yield "<p>Nothing was new, so no mask was written.</p>"
    order = sorted(known, key=lambda status: [*MEANING, status].index(status))
    yield table({status: f"{known[status]:,} {MEANING.get(status, '')}" for status in order}) if known else ""
    yield (
        '<p>Every object that was listed has a row in <a href="report.parquet">report.parquet</a>; '
        'the figures of this page are in <a href="summary.json">summary.json</a>.</p>'
    )


def _masks(shown: int, counts: Mapping[str, int], labels: LabelSet) -> Iterable[str]:
    done = counts.get("done", shown)
    if shown < done:
        yield f"<p>{shown:,} of the {done:,} images done, drawn at random.</p>"
    yield legend((label.name, label.color) for label in labels.classes)


def _failures(failures: Sequence[Failure], total: int) -> Iterable[str]:
    shown = failures[:FAILURES]
    values = ((shortened(k, KEY_LENGTH), status, shortened(why, REASON_LENGTH)) for k, status, why in shown)
    yield wide_table({"Key": 45, "Status": 15, "Reason": 40}, values)
    if more := total - len(shown):
        yield f'<p>{more:,} more in <a href="report.parquet">report.parquet</a>.</p>'


def _class_shares(labels: LabelSet, pixels: Sequence[int]) -> Picture:
    shares = np.array(pixels) / sum(pixels)
    texts = [f"{100 * x:.1f}" if x >= 0.0005 else "< 0.1" if x else "none" for x in shares]
    named = ", ".join(f"{name} {percent(share)}" for name, share in zip(labels.names, shares, strict=True))
    figure = class_bars("Share of pixels by class, %", labels, shares.tolist(), texts, top=shares.max(), colored=True)
    return picture_of("classes.png", figure, f"Share of pixels by class: {named}.")


def _windows(throughput: Sequence[tuple[float, int]]) -> tuple[list[float], list[float]] | None:
    """Images per second in equal windows of time and the windows' edges in seconds, or None where no time passed."""
    times, done = np.array(sorted({(0.0, 0), *throughput}), float).T
    if times[-1] <= 0:
        return None
    edges = np.linspace(0, times[-1], min(WINDOWS, len(set(times)) - 1) + 1)
    rates = np.diff(np.interp(edges, times, done)) / np.diff(edges)
    return rates.tolist(), edges.tolist()


def _speed(rates: Sequence[float], edges: Sequence[float], overall: float | None, height: float) -> Picture:
    seconds, unit = next((s, unit) for s, unit in _UNITS if edges[-1] >= 2 * s or s == 1)
    figure, axes = empty_plot("Images per second", height)
    places = np.array(edges) / seconds
    axes.stairs(rates, places, fill=True, color=BLUE, alpha=0.15, linewidth=0)
    axes.stairs(rates, places, color=BLUE, linewidth=1.5, baseline=None)
    if overall is not None:
        axes.axhline(overall, color=NEUTRAL, linewidth=1, linestyle=":", label=f"whole run: {_rate(overall)}")
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    axes.set_xlim(0, places[-1])
    axes.set_ylim(0, 1.15 * max(*rates, overall or 0, 1e-9))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    axes.set_xlabel(f"{unit} since the start", color=MUTED, fontsize=9)
    grid(axes)
    return picture_of("throughput.png", figure, f"Images per second over {places[-1]:.3g} {unit}.")


_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


def _rate(images_per_second: float | None) -> str:
    if images_per_second is None:
        return "n/a"
    return f"{images_per_second:,.1f}" if images_per_second >= 10 else f"{images_per_second:.2f}"
