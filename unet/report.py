"""The report of a training run: headline, facts, curves, scores of the classes, and samples with their errors.

A report is bytes by file name, index.html and the PNGs it shows; the caller stores them. A value that is None or NaN
shows as n/a or a gap.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from unet.image import Array, colorize, encode, resize_image, resize_mask
from unet.labels import IGNORE, LabelSet
from unet.metrics import ConfusionMatrix
from unet.page import Picture, headline, html_of, legend, linked_picture, percent, plots, render_page, section, table
from unet.plots import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    NEUTRAL,
    SHORT,
    VERMILLION,
    class_bars,
    empty_plot,
    grid,
    height_of,
    picture_of,
    short_names,
)

Row = Mapping[str, Any]
"""A line of metrics.jsonl."""

NUMBERED_CLASSES, NAMED_CLASSES = 20, 60
"""Up to how many classes a confusion matrix has numbers and names."""

# Samples
PANEL, GAP = 480, 6
"""Longest side of a panel and space between panels, in pixels."""
WRONG, UNSCORED = (230, 159, 0), (176, 180, 186)
"""RGB of wrong and of unscored pixels in the panel of errors; the page calls them orange and grey."""
DIMMED = 0.45
"""Brightness of correct pixels in the panel of errors."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image whose prediction is shown; the three arrays have one height and width."""

    name: str
    """Key of the image."""
    image: Array
    """HWC uint8 RGB."""
    truth: Array
    """HW uint8 class indices, `IGNORE` where nothing is scored."""
    prediction: Array
    """HW uint8 class indices."""


def training_report(
    *,
    title: str,
    facts: Mapping[str, str],
    labels: LabelSet,
    history: Sequence[Row],
    confusion: ConfusionMatrix,
    samples: Sequence[Sample],
) -> dict[str, bytes]:
    """Files of the report by name relative to its folder: index.html and the PNGs it shows.

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
    iou = [_number(best["val_iou"] or {}, name) for name in labels.names]
    curves = [_loss_curves(history), _score_curves(history, best)]
    classes = [_iou_bars(labels, iou), _confusion_matrix(labels, confusion)]
    strips = [_strip(f"sample-{i:02}.png", sample, labels) for i, sample in enumerate(samples, 1)]
    parts = [
        headline(figures),
        table(facts),
        section("Training", plots(curves)),
        section("Classes at the best epoch", plots(classes)),
        section("Samples", *_samples(samples, strips, labels)) if samples else "",
    ]
    pictures = {picture.name: picture.png for picture in (*curves, *classes, *strips)}
    return {"index.html": render_page(title, parts), **pictures}


def _samples(samples: Sequence[Sample], strips: Sequence[Picture], labels: LabelSet) -> Iterable[str]:
    ignored = [(f"{label.name} (not scored)", label.color) for label in labels.written if label.ignore]
    yield legend([*((label.name, label.color) for label in labels.classes), *ignored])
    yield "<p>Errors: orange where the prediction is wrong, flat grey where nothing is scored.</p>"
    for sample, strip in zip(samples, strips, strict=True):
        matrix = ConfusionMatrix.empty(len(labels.classes))
        matrix.add(sample.truth, sample.prediction)
        name = f"<strong>{html_of(sample.name)}</strong>"
        errors = f"Errors, {percent(1 - matrix.pixel_accuracy)}"
        panels = "".join(f"<span>{panel}</span>" for panel in ("Image", "Truth", "Prediction", errors))
        yield linked_picture(strip, "strip", name + panels)


def _strip(name: str, sample: Sample, labels: LabelSet) -> Picture:
    """Image, truth, prediction and errors side by side, apart by transparent gaps."""
    height, width = sample.truth.shape
    scale = PANEL / max(height, width)
    scale = math.floor(scale) if scale > 1 else scale  # whole pixels become whole squares
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = (resize_image if scale < 1 else resize_mask)(sample.image, size)
    truth, prediction = resize_mask(sample.truth, size), resize_mask(sample.prediction, size)
    panels = (
        image,
        colorize(truth, labels),
        colorize(prediction, labels),
        _errors(image, truth, prediction),
    )
    step = size[1] + GAP
    strip = np.zeros((size[0], len(panels) * step - GAP, 4), np.uint8)
    for i, panel in enumerate(panels):
        strip[:, i * step : i * step + size[1]] = np.dstack((panel, np.full(size, 255, np.uint8)))
    return Picture(name=name, png=encode(strip), alt=f"{sample.name}: image, truth, prediction, errors")


def _errors(image: Array, truth: Array, prediction: Array) -> Array:
    """HWC uint8 RGB: the image dimmed and grey, `WRONG` and `UNSCORED` over it."""
    grey: Array = (image.mean(axis=2, keepdims=True) * DIMMED).astype(np.uint8).repeat(3, axis=2)
    grey[truth != prediction] = WRONG
    grey[truth == IGNORE] = UNSCORED
    return grey


def _loss_curves(history: Sequence[Row]) -> Picture:
    figure, axes = empty_plot("Loss", SHORT)
    _draw_curves(axes, history, {"train_loss": "training", "val_loss": "validation"})
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return picture_of("loss.png", figure, "Loss by epoch, of training and of validation.")


def _score_curves(history: Sequence[Row], best: Row) -> Picture:
    figure, axes = empty_plot("Validation scores", SHORT)
    _draw_curves(axes, history, {"val_pixel_accuracy": "pixel accuracy", "val_miou": "mean IoU"})
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.axvline(best["epoch"], color=NEUTRAL, linewidth=1, linestyle=":", zorder=0, label="best epoch")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return picture_of(
        "scores.png",
        figure,
        f"Pixel accuracy and mean IoU by epoch; best mean IoU: {percent(_number(best, 'val_miou'))} "
        f"at epoch {best['epoch']}.",
    )


def _draw_curves(axes: Axes, history: Sequence[Row], series: Mapping[str, str]) -> None:
    """A line for each key of `series`, across the epochs that have a value."""
    for (key, name), color in zip(series.items(), (BLUE, VERMILLION), strict=True):
        points = [(row["epoch"], _number(row, key)) for row in history]
        known = np.array([point for point in points if math.isfinite(point[1])]).reshape(-1, 2)
        marker = "o" if len(known) <= 60 else ""
        axes.plot(*known.T, color=color, label=name, marker=marker, markersize=3, linewidth=1.5)
    axes.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", color=MUTED, fontsize=9)
    grid(axes)


def _iou_bars(labels: LabelSet, iou: Sequence[float]) -> Picture:
    texts = [f"{100 * value:.1f}" if math.isfinite(value) else "absent" for value in iou]
    numbers = (f"{name} {percent(value)}" for name, value in zip(labels.names, iou, strict=True))
    figure = class_bars("IoU by class, %", labels, iou, texts)
    return picture_of("iou.png", figure, "IoU by class: " + ", ".join(numbers) + ".")


def _confusion_matrix(labels: LabelSet, confusion: ConfusionMatrix) -> Picture:
    """Shares of each true class, as colour and, up to `NUMBERED_CLASSES`, as numbers."""
    counts, classes = confusion.counts, len(confusion.counts)
    total = counts.sum(1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    figure, axes = empty_plot("Where the pixels of each class went, %", height_of(classes))
    axes.imshow(shares, cmap=colormaps["Blues"].with_extremes(bad=FAINT), vmin=0, vmax=1)
    if classes <= NUMBERED_CLASSES:
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            color = "white" if share > 0.55 else INK
            size = 9 if classes <= 12 else 6.5
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center_baseline", fontsize=size, color=color)
    if classes <= NAMED_CLASSES:
        size = min(9, 220 / classes)
        axes.set_xticks(range(classes), short_names(labels), rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(classes), short_names(labels), fontsize=size, parse_math=False)
    axes.set_xlabel("prediction", color=MUTED, fontsize=9)
    axes.set_ylabel("truth", color=MUTED, fontsize=9)
    axes.spines[:].set_visible(False)
    recall = zip(labels.names, np.diag(shares), strict=True)
    found = ", ".join(f"{name} {percent(share)}" for name, share in recall)
    return picture_of("confusion.png", figure, f"Confusion matrix. Pixels of each class that were found: {found}.")


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)
