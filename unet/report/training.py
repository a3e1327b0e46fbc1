"""The page of a training run: headline, facts, curves, scores of the classes, confusions, samples with their errors.

A value that is None or NaN shows as n/a or a gap.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unet.data.labels import LabelSet
from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import SamplePrediction, panel_legends, sample_figures
from unet.report.page import MAX_PICTURES, format_percent, render_page, side_by_side
from unet.report.plots import ReferenceLine, format_axis_percent, line_plot
from unet.report.score_tables import class_table, confusion_figures

EpochMetrics = Mapping[str, Any]
"""A line of metrics.jsonl."""


def training_report(
    *,
    title: str,
    facts: Mapping[str, str],
    labels: LabelSet,
    history: Sequence[EpochMetrics],
    confusion: ConfusionMatrix,
    samples: Iterable[SamplePrediction],
) -> bytes:
    """Return the page as HTML.

    `facts` are shown as they are, label and value. `history` has one row per epoch, at least one; the best epoch is
    the first with the highest `val_miou`. `confusion` and `samples` are those of the best epoch.
    """
    best = max(history, key=lambda row: np.nan_to_num(_metric(row, "val_miou"), nan=-1.0))
    headline = {
        "Mean IoU": format_percent(_metric(best, "val_miou")),
        "Mean Dice": format_percent(_metric(best, "val_mdice")),
        "Pixel accuracy": format_percent(_metric(best, "val_pixel_accuracy")),
        "Best epoch": f"{best['epoch']} of {history[-1]['epoch']}",
    }
    figures = sample_figures("sample", samples, labels, MAX_PICTURES)
    sections = {
        "Training": _curves(history, best["epoch"]),
        "Classes": "<p>At the best epoch, over all pixels of the validation images.</p>"
        + class_table(labels, confusion),
        "Confusions": confusion_figures(labels, confusion),
        "Samples": panel_legends(labels) + figures if figures else "",
    }
    return render_page(title, "Training", headline, facts, sections)


def _curves(history: Sequence[EpochMetrics], best: int) -> str:
    def curve(name: str, key: str) -> tuple[str, list[tuple[float, float]]]:
        return name, [(row["epoch"], _metric(row, key)) for row in history]

    line = ReferenceLine(best, "best epoch")
    losses = [curve("training", "train_loss"), curve("validation", "val_loss")]
    scores = [curve("pixel accuracy", "val_pixel_accuracy"), curve("mean IoU", "val_miou")]
    return side_by_side(
        line_plot("Loss", losses, x_name="epoch", vertical=line),
        line_plot("Validation scores", scores, x_name="epoch", y_top=1, y_format=format_axis_percent, vertical=line),
    )


def _metric(row: EpochMetrics, key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)
