"""What a page shows of a confusion matrix: scores by class, the matrix, and its largest confusions."""

from dataclasses import dataclass

import numpy as np

from unet.data.labels import LabelSet
from unet.model.metrics import ConfusionMatrix
from unet.report.page import side_by_side, truncate_middle
from unet.report.plots import matrix_plot
from unet.report.tables import Cell, count_cell, ratio_cell, sortable_table

NAME_LENGTH = 60
"""Letters of a class name in a table."""
MAX_CONFUSIONS = 16
"""Rows of the table of confusions."""


def class_cells(labels: LabelSet) -> list[Cell]:
    """Return a cell for each class: its colour and its name."""
    return [Cell(text=truncate_middle(label.name, NAME_LENGTH), color=label.color) for label in labels.classes]


def class_table(labels: LabelSet, confusion: ConfusionMatrix) -> str:
    """Return a row for each class: IoU with its bar, Dice, precision, recall, and share of the pixels in truth."""
    pixels = confusion.counts.sum(1)
    shares = pixels / max(1, pixels.sum())
    scores = (confusion.iou, confusion.dice, confusion.precision, confusion.recall, shares)
    rows = []
    for name, iou, *others in zip(class_cells(labels), *(score.tolist() for score in scores), strict=True):
        rows.append([name, ratio_cell(iou, bar=iou), *map(ratio_cell, others)])
    return sortable_table("Scores by class", ("Class", "IoU", "Dice", "Precision", "Recall", "Pixels"), rows)


@dataclass(frozen=True)
class MatrixTitles:
    """What a confusion matrix is called, and the table of its largest entries."""

    matrix: str = "Where the pixels of each class went, %"
    axes: tuple[str, str] = ("truth", "prediction")
    table: str = "Largest confusions"
    columns: tuple[str, str] = ("Truth", "Taken for")


def confusion_figures(labels: LabelSet, confusion: ConfusionMatrix, titles: MatrixTitles = MatrixTitles()) -> str:
    """Return the confusion matrix beside a table of its largest entries off the diagonal."""
    counts = confusion.counts
    total = counts.sum(1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    matrix = matrix_plot(titles.matrix, shares, labels.names, titles.axes)
    errors = counts - np.diag(np.diag(counts))
    largest = np.argsort(-errors, axis=None, kind="stable")[:MAX_CONFUSIONS]
    names = class_cells(labels)
    rows = [
        (names[truth], names[taken], ratio_cell(float(shares[truth, taken])), count_cell(int(errors[truth, taken])))
        for truth, taken in zip(*np.unravel_index(largest, errors.shape), strict=True)
        if errors[truth, taken]
    ]
    if not rows:
        return matrix
    table = sortable_table(titles.table, (*titles.columns, "Of the class", "Pixels"), rows)
    return side_by_side(matrix, table)
