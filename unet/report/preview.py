"""The page of a preview: what a new model would change of the recorded masks, by class and by image, and what it takes.

The caller stores it beside preview.parquet and summary.json, which it links to. It stays below 5 MB.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unet.data.labels import LabelSet
from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import UNSCORED, WRONG, Panels, Titles, panel_figures
from unet.report.page import (
    MAX_PICTURES,
    escape_html,
    format_percent,
    legend,
    render_page,
    side_by_side,
    truncate_middle,
)
from unet.report.plots import bar_plot, format_axis_percent
from unet.report.score_tables import MatrixTitles, class_cells, confusion_figures
from unet.report.tables import Cell, ratio_cell, sortable_table

MAX_IMAGES, KEY_LENGTH, REASON_LENGTH = 200, 256, 300
"""Rows of a table of images, and how much of a key and of a reason it shows."""
BINS = 20
"""Bars of the histogram."""

MATRIX = MatrixTitles(
    matrix="Where the pixels of each old class go, %",
    axes=("old mask", "new mask"),
    table="Largest changes",
    columns=("Old class", "New class"),
)
PANELS = Titles(("Image", "Old mask", "New mask", "Changes"), over=2)


def preview_report(
    summary: Mapping[str, Any],
    *,
    labels: LabelSet,
    rows: Sequence[Mapping[str, Any]],
    panels: Sequence[tuple[Panels, float]],
) -> bytes:
    """Return the page as HTML.

    `summary` is what summary.json will say, `rows` what preview.parquet will. `labels` are the classes of both models,
    those of the matrix. `panels` are images to look at, each with its share of changed pixels, in the order to show.
    """
    confusion = ConfusionMatrix(np.array(summary["matrix"], np.int64))
    headline = {
        "Pixels that change": _percent(summary["share"]),
        "Images compared": f"{summary['counts'].get('done', 0):,}",
        "Seconds an image": f"{1 / summary['images_per_second']:.3g}",
        "Hours for all": f"{summary['hours_for_all']:,.3g}",
    }
    done = [row for row in rows if row["status"] == "done" and row["share"] is not None]
    noted = ((drawn, f"{format_percent(share)} of the pixels change") for drawn, share in panels)
    figures = panel_figures("changed", noted, MAX_PICTURES, PANELS)
    others = [row for row in rows if row["status"] != "done"]
    sections = {
        "Classes": _class_section(labels, confusion, summary),
        "Changes": confusion_figures(labels, confusion, MATRIX) if summary["pixels"] else "",
        "Images": _image_section(done) if done else "",
        "Images that change most": _legends(labels) + figures if figures else "",
        "Not compared": "\n".join(_not_compared(others)) if others else "",
    }
    return render_page(summary["preview"], "Preview", headline, _facts_of(summary), sections)


def _facts_of(summary: Mapping[str, Any]) -> dict[str, str]:
    def change(name: str) -> str:
        return f"{_percent(summary[f'{name}_before'])} before, {_percent(summary[name])} after"

    return {
        "Input": summary["input"],
        "Output": summary["output"],
        "Model": summary["model"],
        "Recorded images": f"{summary['recorded']:,}",
        "Mean confidence": change("confidence"),
        "Unsure pixels": change("unsure"),
        "Images per second": f"{summary['images_per_second']:,.3g}",
        "Time": f"{summary['seconds']:,.1f} s",
    }


def _percent(ratio: float | None) -> str:
    return "n/a" if ratio is None else f"{ratio:.2%}"


def _class_section(labels: LabelSet, confusion: ConfusionMatrix, summary: Mapping[str, Any]) -> str:
    """Return a row for each class: its share of the pixels after and before, and how much of it is kept."""
    total = max(1, summary["pixels"])
    before, after = (confusion.counts.sum(axis) / total for axis in (1, 0))
    stay = confusion.recall
    most = max(float(before.max()), float(after.max()), 1e-9)
    rows = [
        (name, ratio_cell(after, bar=after / most), ratio_cell(before), ratio_cell(stay))
        for name, after, before, stay in zip(
            class_cells(labels), after.tolist(), before.tolist(), stay.tolist(), strict=True
        )
    ]
    notes = [
        f"<p>Only in the {model}: {escape_html(', '.join(names))}.</p>"
        for model, names in (("old masks", summary["only_before"]), ("new model", summary["only_after"]))
        if names
    ]
    table = sortable_table("Share of pixels by class", ("Class", "After", "Before", "Kept"), rows)
    return "\n".join(("<p>Over all pixels of the images compared.</p>", *notes, table))


def _image_section(rows: Sequence[Mapping[str, Any]]) -> str:
    ranked = sorted(rows, key=lambda row: -row["share"])[:MAX_IMAGES]
    ratios = ("share", "confidence_before", "confidence")
    cells = [
        [
            Cell(text=truncate_middle(row["key"], KEY_LENGTH)),
            *(ratio_cell(math.nan if row[name] is None else row[name]) for name in ratios),
        ]
        for row in ranked
    ]
    columns = ("Key", "Changed", "Confidence before", "Confidence after")
    table = sortable_table("Images, those that change most first", columns, cells)
    listed = f"The {MAX_IMAGES} of {len(rows):,} images that change most are" if len(rows) > MAX_IMAGES else "All are"
    note = f'<p>{listed} listed here; every image has a row in <a href="preview.parquet">preview.parquet</a>, and the '
    counts, edges = np.histogram([row["share"] for row in rows], BINS, (0, ranked[0]["share"] or 1))
    plot = bar_plot(
        "Images by their share of changed pixels",
        edges.tolist(),
        counts.tolist(),
        x_name="changed pixels",
        x_format=format_axis_percent,
    )
    return f'{note}figures are in <a href="summary.json">summary.json</a>.</p>\n{side_by_side(plot, table)}'


def _legends(labels: LabelSet) -> str:
    classes = legend((label.name, label.color) for label in labels.classes)
    return f"{classes}\n{legend([('changes: another class', WRONG), ('changes: no data', UNSCORED)])}"


def _not_compared(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    cells = [
        (truncate_middle(row["key"], KEY_LENGTH), row["status"], truncate_middle(row["error"] or "", REASON_LENGTH))
        for row in rows[:MAX_IMAGES]
    ]
    yield sortable_table("Not compared", ("Key", "Status", "Reason"), cells)
    if more := len(rows) - len(cells):
        yield f"<p>{more:,} more in preview.parquet.</p>"
