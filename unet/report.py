"""The report of a training run: headline, facts, curves, scores of the classes, and samples with their errors.

A report is bytes by file name, index.html and the PNGs it shows; the caller stores them. A value that is None or NaN
shows as n/a or a gap.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from unet.image import Array, colorize, encode, resize_image, resize_mask
from unet.labels import IGNORE, LabelSet
from unet.metrics import ConfusionMatrix
from unet.page import Picture, headline, legend, linked_picture, percent, plots, render_page, section, table

Row = Mapping[str, Any]
"""A line of metrics.jsonl."""

# Plots: the colours are of Okabe and Ito, which stay apart for every kind of colour vision.
BLUE, VERMILLION = "#0072b2", "#d55e00"
INK, MUTED, FAINT, NEUTRAL = "#22262b", "#5f6770", "#e4e7ea", "#8a939c"
WIDTH, SHORT, TALL, MARGIN = 5.6, 3.3, 5.6, 0.12
"""Inches of a plot, which is as wide as half a page: its width, least and usual most height, and margin."""
DOTS_PER_INCH, DENSITY = 200, 2
"""A plot has `DENSITY` pixels to each pixel of the page, so that it is sharp on fine screens."""
NUMBERED_CLASSES, NAMED_CLASSES, NAME_LENGTH = 20, 60, 20
"""Up to how many classes a confusion matrix has numbers and names, and how long a name is in a plot."""

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
    ignored = [(f"{label.name} (not scored)", label.color) for label in labels.labels if label.ignore]
    yield legend([*((label.name, label.color) for label in labels.classes), *ignored])
    yield "<p>Errors: orange where the prediction is wrong, flat grey where nothing is scored.</p>"
    for sample, strip in zip(samples, strips, strict=True):
        matrix = ConfusionMatrix.empty(len(labels.classes))
        matrix.add(sample.truth, sample.prediction)
        name = f"<strong>{escape(sample.name)}</strong>"
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
    figure, axes = _plot("Loss", SHORT)
    _draw_curves(axes, history, {"train_loss": "training", "val_loss": "validation"})
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return _picture("loss.png", figure, "Loss by epoch, of training and of validation.")


def _score_curves(history: Sequence[Row], best: Row) -> Picture:
    figure, axes = _plot("Validation scores", SHORT)
    _draw_curves(axes, history, {"val_pixel_accuracy": "pixel accuracy", "val_miou": "mean IoU"})
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.axvline(best["epoch"], color=NEUTRAL, linewidth=1, linestyle=":", zorder=0, label="best epoch")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return _picture(
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
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _iou_bars(labels: LabelSet, iou: Sequence[float]) -> Picture:
    classes = len(iou)
    figure, axes = _plot("IoU by class, %", max(_height(classes), 0.25 * classes))
    rows = np.arange(classes)
    axes.barh(rows, np.nan_to_num(iou), height=min(0.62, 0.12 * classes), color=NEUTRAL)
    for row, value in enumerate(iou):
        text = f"{100 * value:.1f}" if math.isfinite(value) else "absent"
        axes.text(np.nan_to_num(value) + 0.015, row, text, va="center_baseline", fontsize=9, color=INK)
    beside = axes.get_yaxis_transform()
    axes.scatter(
        np.full(classes, -0.025), rows, s=60, c=labels.colors[:classes] / 255, marker="s", linewidths=0.5,
        edgecolors=MUTED, transform=beside, clip_on=False,
    )  # fmt: skip
    axes.set_xlim(0, 1.1)
    axes.set_ylim(classes - 0.4, -0.6)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(rows, _short(labels), fontsize=9, parse_math=False)
    axes.tick_params(axis="y", pad=16)
    numbers = (f"{name} {percent(value)}" for name, value in zip(labels.names, iou, strict=True))
    return _picture("iou.png", figure, "IoU by class: " + ", ".join(numbers) + ".")


def _confusion_matrix(labels: LabelSet, confusion: ConfusionMatrix) -> Picture:
    """Shares of each true class, as colour and, up to `NUMBERED_CLASSES`, as numbers."""
    counts, classes = confusion.counts, len(confusion.counts)
    total = counts.sum(1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    figure, axes = _plot("Where the pixels of each class went, %", _height(classes))
    axes.imshow(shares, cmap=colormaps["Blues"].with_extremes(bad=FAINT), vmin=0, vmax=1)
    if classes <= NUMBERED_CLASSES:
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            color = "white" if share > 0.55 else INK
            size = 9 if classes <= 12 else 6.5
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center_baseline", fontsize=size, color=color)
    if classes <= NAMED_CLASSES:
        size = min(9, 220 / classes)
        axes.set_xticks(range(classes), _short(labels), rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(classes), _short(labels), fontsize=size, parse_math=False)
    axes.set_xlabel("prediction", color=MUTED, fontsize=9)
    axes.set_ylabel("truth", color=MUTED, fontsize=9)
    axes.spines[:].set_visible(False)
    recall = zip(labels.names, np.diag(shares), strict=True)
    found = ", ".join(f"{name} {percent(share)}" for name, share in recall)
    return _picture("confusion.png", figure, f"Confusion matrix. Pixels of each class that were found: {found}.")


def _plot(title: str, height: float) -> tuple[Figure, Axes]:
    """An empty plot `height` inches high."""
    layout = ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN)
    figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor="white")
    figure.suptitle(title, x=MARGIN / WIDTH, ha="left", fontsize=10.5, fontweight="bold", color=INK)
    axes = figure.add_subplot()
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(NEUTRAL)
    axes.tick_params(length=0, colors=MUTED, labelsize=9)
    return figure, axes


def _picture(name: str, figure: Figure, alt: str) -> Picture:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=DOTS_PER_INCH, format="png")
    return Picture(name=name, png=buffer.getvalue(), alt=alt, density=DENSITY)


def _height(classes: int) -> float:
    """Inches of a plot with a row for each class, the same for bars and matrix so that they align."""
    return min(max(SHORT, 0.35 * classes + 1.6), TALL)


def _short(labels: LabelSet) -> list[str]:
    return [x if len(x) <= NAME_LENGTH else x[: NAME_LENGTH - 1] + "…" for x in labels.names]


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)
