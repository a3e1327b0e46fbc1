"""The page of an evaluation: headline, facts, scores of the classes, confusions, and the worst and the best images.

A page is bytes by file name, index.html alone; the caller stores it beside images.parquet, which it links to and which
has every image. Of however many images and classes, it stays below 5 MB.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unet.data.labels import LabelSet
from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import Comparison, comparisons, legends
from unet.report.page import FULL, facts_list, headline, pair, percent, render_page, shortened
from unet.report.plots import Mark, bar_plot, whole_percent
from unet.report.score_tables import class_table, confusions
from unet.report.tables import Cell, count_cell, ratio_cell, sortable_table

IMAGES, KEY_LENGTH = 200, 256
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
    worst: Sequence[Comparison],
    best: Sequence[Comparison],
) -> dict[str, bytes]:
    """Files of the page by name relative to its folder: index.html.

    `facts` are shown as they are, label and value. `confusion` counts all pixels of all `images`. `worst` and `best`
    are images to look at, each in the order to show them.
    """
    figures = {
        "Mean IoU": percent(confusion.mean_iou),
        "Mean Dice": percent(confusion.mean_dice),
        "Pixel accuracy": percent(confusion.pixel_accuracy),
        "Images": f"{len(images):,}",
    }
    means = {
        "Mean class accuracy": percent(confusion.mean_class_accuracy),
        "Frequency-weighted IoU": percent(confusion.frequency_weighted_iou),
    }
    worst_shown = comparisons("worst", worst, labels, FULL // 2)
    sections = {
        "Classes": "<p>Over all pixels of all images.</p>" + class_table(labels, confusion),
        "Confusions": confusions(labels, confusion),
        "Images": _images(images) if images else "",
        "Worst images": legends(labels) + worst_shown if worst_shown else "",
        "Best images": comparisons("best", best, labels, FULL // 2),
    }
    return {
        "index.html": render_page(title, "Evaluation", [headline(figures), facts_list(means | dict(facts))], sections)
    }


def _images(images: Sequence[ImageScore]) -> str:
    ordered = sorted(images, key=lambda image: (math.isnan(image.miou), image.miou))
    rows = [
        (
            shortened(image.key, KEY_LENGTH),
            ratio_cell(image.miou),
            ratio_cell(image.pixel_accuracy),
            Cell(text=f"{image.height} x {image.width}", value=image.height * image.width),
            count_cell(image.pixels),
        )
        for image in ordered[:IMAGES]
    ]
    columns = ("Key", "Mean IoU", "Accuracy", "Size", "Scored")
    which = f"The {IMAGES} worst of {len(images):,} images are listed" if len(images) > IMAGES else "All are listed"
    return "\n".join(
        (
            f'<p>{which} here; every image has a row in <a href="images.parquet">images.parquet</a>.</p>',
            pair(_histogram(images), sortable_table("Images, worst first", columns, rows, ascending="Mean IoU")),
        )
    )


def _histogram(images: Sequence[ImageScore]) -> str:
    known = np.array([image.miou for image in images if not math.isnan(image.miou)])
    counts, edges = np.histogram(known, BINS, (0, 1))
    mark = Mark(float(known.mean()), f"mean: {percent(known.mean())}") if len(known) else None
    return bar_plot(
        "Images by their mean IoU",
        edges.tolist(),
        counts.tolist(),
        x_name="mean IoU",
        x_format=whole_percent,
        mark=mark,
    )
