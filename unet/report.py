"""The page of a run: one folder with index.html and the PNGs it shows.

The first half is the shell that pages share (HTML, CSS, tables, pictures), the second what a training page holds.
A page opens from a local disk: relative links, no script, nothing fetched. Text is escaped, and a value that is None
or NaN shows as n/a or a gap. A report is bytes by file name; the caller stores them.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from unet.image import Array, colorize, encode, resize_image, resize_mask, size_of
from unet.labels import IGNORE, LabelSet
from unet.metrics import ConfusionMatrix

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


# The shell


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG of a page."""

    name: str
    """File name, relative to the page."""
    png: bytes
    alt: str
    """What it shows, in words."""
    density: int = 1
    """Pixels of the file to each pixel of the page."""


_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #22262b; --muted: #5f6770; --paper: #f7f8f9; --line: #dde1e5 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --muted: #9aa3ad; --paper: #16191d; --line: #343a41 }
}
body { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
h1 { margin: 0 0 1.5rem; font-size: 1.75rem; font-weight: 600; line-height: 1.2 }
h2 { margin: 3rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 1.125rem; font-weight: 600 }
p { max-width: 44rem; margin: 0 0 1rem; color: var(--muted) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin: 0 0 2rem }
dt, th, figcaption { color: var(--muted); font-size: .875rem; font-weight: 400 }
dd { margin: 0; font-size: 2rem; font-weight: 600; line-height: 1.2; white-space: nowrap }
table { border-collapse: collapse }
th, td { padding: .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { padding-right: 2rem; line-height: 1.7; overflow-wrap: normal }
figure { width: fit-content; max-width: 100%; margin: 0 }
figcaption { width: 0; min-width: 100% }
img { display: block; max-width: 100%; height: auto }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
.plots figure, .plots img { width: 100% }
.plots img { box-sizing: border-box; border: 1px solid var(--line); border-radius: 6px; background: #fff }
.strip { margin-bottom: 1.5rem }
.strip figcaption { display: grid; grid-template-columns: repeat(4, 1fr); margin-bottom: .25rem }
.strip strong { grid-column: span 4; color: var(--ink); font-weight: 500 }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 1.5rem; padding: 0; list-style: none;
  font-size: .875rem }
.legend span { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border: 1px solid var(--muted);
  border-radius: 2px; vertical-align: -.1em }
</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
</body>
</html>
""")


def _page(title: str, parts: Iterable[str]) -> bytes:
    return _PAGE.substitute(title=escape(title), body="\n".join(parts)).encode()


def _section(heading: str, *parts: str) -> str:
    return "\n".join((f"<section>\n<h2>{escape(heading)}</h2>", *parts, "</section>"))


def _headline(figures: Mapping[str, str]) -> str:
    items = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in figures.items())
    return "\n".join(("<dl>", *items, "</dl>"))


def _table(facts: Mapping[str, str]) -> str:
    rows = (f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in facts.items())
    return "\n".join(("<table>", *rows, "</table>"))


def _figure(picture: Picture, kind: str, caption: str = "") -> str:
    """`picture` of the CSS class `kind`, linked to its file in full size; `caption` is HTML."""
    height, width = (side // picture.density for side in size_of(picture.png))
    name = escape(picture.name)
    image = f'<img src="{name}" width="{width}" height="{height}" alt="{escape(picture.alt)}">'
    above = f"<figcaption>{caption}</figcaption>\n" if caption else ""
    return f'<figure class="{kind}">\n{above}<a href="{name}">{image}</a>\n</figure>'


def _plots(pictures: Iterable[Picture]) -> str:
    figures = (_figure(picture, "plot") for picture in pictures)
    return "\n".join(('<div class="plots">', *figures, "</div>"))


def _legend(colors: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    items = (f'<li><span style="background: rgb{color}"></span>{escape(name)}</li>' for name, color in colors)
    return "\n".join(('<ul class="legend">', *items, "</ul>"))


def _percent(ratio: float) -> str:
    return f"{ratio:.1%}" if math.isfinite(ratio) else "n/a"


# A training run


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
    headline = {
        "Mean IoU": _percent(_number(best, "val_miou")),
        "Mean Dice": _percent(_number(best, "val_mdice")),
        "Pixel accuracy": _percent(_number(best, "val_pixel_accuracy")),
        "Best epoch": f"{best['epoch']} of {history[-1]['epoch']}",
    }
    iou = [_number(best["val_iou"] or {}, name) for name in labels.names]
    curves = [_loss_curves(history), _score_curves(history, best)]
    classes = [_iou_bars(labels, iou), _confusion_matrix(labels, confusion)]
    strips = [_strip(f"sample-{i:02}.png", sample, labels) for i, sample in enumerate(samples, 1)]
    parts = [
        _headline(headline),
        _table(facts),
        _section("Training", _plots(curves)),
        _section("Classes at the best epoch", _plots(classes)),
        _section("Samples", *_samples(samples, strips, labels)) if samples else "",
    ]
    pictures = {picture.name: picture.png for picture in (*curves, *classes, *strips)}
    return {"index.html": _page(title, parts), **pictures}


def _samples(samples: Sequence[Sample], strips: Sequence[Picture], labels: LabelSet) -> Iterable[str]:
    ignored = [(f"{label.name} (not scored)", label.color) for label in labels.labels if label.ignore]
    yield _legend([*((label.name, label.color) for label in labels.classes), *ignored])
    yield "<p>Errors: orange where the prediction is wrong, flat grey where nothing is scored.</p>"
    for sample, strip in zip(samples, strips, strict=True):
        matrix = ConfusionMatrix.empty(len(labels.classes))
        matrix.add(sample.truth, sample.prediction)
        name = f"<strong>{escape(sample.name)}</strong>"
        errors = f"Errors, {_percent(1 - matrix.pixel_accuracy)}"
        panels = "".join(f"<span>{panel}</span>" for panel in ("Image", "Truth", "Prediction", errors))
        yield _figure(strip, "strip", name + panels)


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
        f"Pixel accuracy and mean IoU by epoch; best mean IoU: {_percent(_number(best, 'val_miou'))} "
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
    numbers = (f"{name} {_percent(value)}" for name, value in zip(labels.names, iou, strict=True))
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
    found = ", ".join(f"{name} {_percent(share)}" for name, share in recall)
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
