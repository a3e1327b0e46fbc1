"""The page of an evaluation: headline, facts, scores of the classes, confusions, and the worst and the best images.

The caller stores it beside images.parquet, which it links to and which has every image. Of however many images and
classes, it stays below 5 MB.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unet.data.labels import LabelSet
from unet.model.bootstrap import CONFIDENCE
from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import SamplePrediction, panel_legends, sample_figures
from unet.report.page import MAX_PICTURES, escape_html, format_percent, render_page, side_by_side, truncate_middle
from unet.report.plots import ReferenceLine, bar_plot, format_axis_percent
from unet.report.score_tables import class_cells, class_table, confusion_figures
from unet.report.tables import Cell, count_cell, ratio_cell, sortable_table

MAX_IMAGES, KEY_LENGTH = 200, 256
"""Rows of the table of images, and how much of a key it shows."""
BINS = 20
"""Bars of the histogram."""


@dataclass(frozen=True)
class ImageScore:
    """Scores of one image."""

    key: str
    height: int
    width: int
    pixels: int
    """Pixels that are scored."""
    pixel_accuracy: float
    """NaN without any."""
    miou: float
    """Mean IoU over the classes present in its truth or prediction; NaN without any pixel."""


def evaluation_report(
    *,
    title: str,
    facts: Mapping[str, str],
    labels: LabelSet,
    confusion: ConfusionMatrix,
    images: Sequence[ImageScore],
    worst: Iterable[SamplePrediction],
    best: Iterable[SamplePrediction],
    against: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the page as HTML.

    `facts` are shown as they are, label and value. `confusion` counts all pixels of all `images`. `worst` and `best`
    are images to look at, each in the order to show them. `against` is what scores.json will say of another model.
    """
    headline = {
        "Mean IoU": format_percent(confusion.mean_iou),
        "Mean Dice": format_percent(confusion.mean_dice),
        "Pixel accuracy": format_percent(confusion.pixel_accuracy),
        "Images": f"{len(images):,}",
    }
    means = {
        "Mean class accuracy": format_percent(confusion.mean_class_accuracy),
        "Frequency-weighted IoU": format_percent(confusion.frequency_weighted_iou),
    }
    worst_figures = sample_figures("worst", worst, labels, MAX_PICTURES // 2)
    sections = {
        "Classes": "<p>Over all pixels of all images.</p>" + class_table(labels, confusion),
        "Against another model": "" if against is None else _against_section(labels, confusion, against),
        "Confusions": confusion_figures(labels, confusion),
        "Images": _image_section(images) if images else "",
        "Worst images": panel_legends(labels) + worst_figures if worst_figures else "",
        "Best images": sample_figures("best", best, labels, MAX_PICTURES // 2),
    }
    return render_page(title, "Evaluation", headline, means | dict(facts), sections)


def _against_section(labels: LabelSet, confusion: ConfusionMatrix, against: Mapping[str, Any]) -> str:
    rows = [
        (name, ratio_cell(iou), ratio_cell(other["iou"]), *map(_signed_cell, other["iou_difference"].values()))
        for name, iou, other in zip(
            class_cells(labels), confusion.iou.tolist(), against["classes"].values(), strict=True
        )
    ]
    columns = ("Class", "IoU", "Other", "Difference", "From", "To")
    table = sortable_table("IoU by class beside that of the other model", columns, rows)
    return (
        f"<p>Mean IoU {format_percent(against['miou'])} of {escape_html(against['model'])}, on the same images. This "
        f"model's differs by {format_difference(against['miou_difference'])}. An interval is that of "
        f"{against['resamples']:,} resamples of the images; where it holds 0, other images of the kind may say "
        f"otherwise.</p>{table}"
    )


def format_difference(difference: Mapping[str, float]) -> str:
    """Return a difference of two scores with its interval, in points of a hundred."""
    value, low, high = (_points(number) for number in difference.values())
    return f"{value} points ({CONFIDENCE:.0%}: {low} to {high})"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}" if math.isfinite(difference) else "n/a"


def _signed_cell(difference: float) -> Cell:
    return Cell(text=_points(difference), value=difference)


def _image_section(images: Sequence[ImageScore]) -> str:
    rows = [
        (
            truncate_middle(image.key, KEY_LENGTH),
            ratio_cell(image.miou),
            ratio_cell(image.pixel_accuracy),
            Cell(text=f"{image.height} x {image.width}", value=image.height * image.width),
            count_cell(image.pixels),
        )
        for image in sorted(images, key=lambda image: (math.isnan(image.miou), image.miou))[:MAX_IMAGES]
    ]
    columns = ("Key", "Mean IoU", "Accuracy", "Size", "Scored")
    table = sortable_table("Images, worst first", columns, rows, ascending="Mean IoU")
    listed = f"The {MAX_IMAGES} worst of {len(images):,} images are" if len(images) > MAX_IMAGES else "All are"
    note = f'<p>{listed} listed here; every image has a row in <a href="images.parquet">images.parquet</a>.</p>'
    return f"{note}\n{side_by_side(_histogram(images), table)}"


def _histogram(images: Sequence[ImageScore]) -> str:
    scores = np.array([image.miou for image in images if not math.isnan(image.miou)])
    counts, edges = np.histogram(scores, BINS, (0, 1))
    mean = ReferenceLine(float(scores.mean()), f"mean: {format_percent(scores.mean())}") if len(scores) else None
    return bar_plot(
        "Images by their mean IoU",
        edges.tolist(),
        counts.tolist(),
        x_name="mean IoU",
        x_format=format_axis_percent,
        vertical=mean,
    )
