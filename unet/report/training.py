"""The page of a training run: headline, facts, curves, scores of the classes, confusions, samples with their errors.

A page is bytes by file name, index.html alone; the caller stores it. A value that is None or NaN shows as n/a or a gap.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unet.data.labels import LabelSet
from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import Comparison, comparisons, legends
from unet.report.page import FULL, facts_list, headline, pair, percent, render_page
from unet.report.plots import Mark, line_plot, whole_percent
from unet.report.score_tables import class_table, confusions

__all__ = ["Comparison", "Row", "training_report"]

Row = Mapping[str, Any]
"""A line of metrics.jsonl."""


def training_report(
    *,
    title: str,
    facts: Mapping[str, str],
    labels: LabelSet,
    history: Sequence[Row],
    confusion: ConfusionMatrix,
    samples: Sequence[Comparison],
) -> dict[str, bytes]:
    """Files of the report by name relative to its folder: index.html.

    `facts` are shown as they are, label and value. `history` has one row per epoch, at least one; the best epoch is
    the first with the highest `val_miou`. `confusion` and `samples` are those of the best epoch.
    """
    best = max(history, key=lambda row: np.nan_to_num(_number(row, "val_miou"), nan=-1.0))
    figures = {
        "Mean IoU": percent(_number(best, "val_miou")),
        "Mean Dice": percent(_number(best, "val_mdice")),
        "Pixel accuracy": percent(_number(best, "val_pixel_accuracy")),
        "Best epoch": f"{best['epoch']} of {history[-1]['epoch']}",
    }
    shown = comparisons("sample", samples, labels, FULL)
    sections = {
        "Training": _curves(history, best["epoch"]),
        "Classes": "<p>At the best epoch, over all pixels of the validation images.</p>"
        + class_table(labels, confusion),
        "Confusions": confusions(labels, confusion),
        "Samples": legends(labels) + shown if shown else "",
    }
    return {"index.html": render_page(title, "Training", [headline(figures), facts_list(facts)], sections)}


def _curves(history: Sequence[Row], best: int) -> str:
    mark = Mark(best, "best epoch")
    loss = [(name, _points(history, key)) for name, key in (("training", "train_loss"), ("validation", "val_loss"))]
    scores = [
        (name, _points(history, key))
        for name, key in (("pixel accuracy", "val_pixel_accuracy"), ("mean IoU", "val_miou"))
    ]
    return pair(
        line_plot("Loss", loss, x_name="epoch", mark=mark),
        line_plot("Validation scores", scores, x_name="epoch", y_top=1, y_format=whole_percent, mark=mark),
    )


def _points(history: Sequence[Row], key: str) -> list[tuple[float, float]]:
    return [(row["epoch"], _number(row, key)) for row in history]


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)
