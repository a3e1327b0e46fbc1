"""The plots of a page: their colours, their type and their sizes, and bars of the classes.

Every plot is half a page wide and drawn on white, whatever the page's own ground. Text from outside is never parsed as
mathematics. A value that is NaN is a gap.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from unet.labels import LabelSet
from unet.page import Picture

# The colours are of Okabe and Ito, which stay apart for every kind of colour vision.
BLUE, VERMILLION = "#0072b2", "#d55e00"
INK, MUTED, FAINT, NEUTRAL = "#22262b", "#5f6770", "#e4e7ea", "#8a939c"
WIDTH, SHORT, TALL, MARGIN = 5.6, 3.3, 5.6, 0.12
"""Inches of a plot: its width, least and usual most height, and margin."""
DOTS_PER_INCH, DENSITY = 200, 2
"""A plot has `DENSITY` pixels to each pixel of the page, so that it is sharp on fine screens."""
NAME_LENGTH = 20
"""Letters of a class name in a plot."""


def empty_plot(title: str, height: float) -> tuple[Figure, Axes]:
    """A plot `height` inches high, to be drawn in."""
    layout = ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN)
    figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor="white")
    figure.suptitle(title, x=MARGIN / WIDTH, ha="left", fontsize=10.5, fontweight="bold", color=INK)
    axes = figure.add_subplot()
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(NEUTRAL)
    axes.tick_params(length=0, colors=MUTED, labelsize=9)
    return figure, axes


def grid(axes: Axes) -> None:
    """Faint lines to read heights by, behind what is drawn."""
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def picture_of(name: str, figure: Figure, alt: str) -> Picture:
    """`figure` as a PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=DOTS_PER_INCH, format="png")
    return Picture(name=name, png=buffer.getvalue(), alt=alt, density=DENSITY)


def class_bars(
    title: str,
    labels: LabelSet,
    ratios: Sequence[float],
    texts: Sequence[str],
    *,
    top: float = 1,
    colored: bool = False,
) -> Figure:
    """A bar for each class with its text at the end; a bar of the ratio `top` is as long as there is room.

    Bars are grey, or `colored` as their labels; the label's colour is beside its name either way.
    """
    classes = len(ratios)
    figure, axes = empty_plot(title, max(height_of(classes), 0.25 * classes))
    rows, lengths, colors = np.arange(classes), np.nan_to_num(ratios), labels.colors[:classes] / 255
    bars = axes.barh(rows, lengths, height=min(0.62, 0.12 * classes), color=colors if colored else NEUTRAL)
    if colored:
        for bar in bars.patches:
            bar.set(edgecolor=MUTED, linewidth=0.5 if bar.get_width() else 0)  # a white label is seen too
    for row, text in enumerate(texts):
        axes.text(lengths[row] + 0.015 * top, row, text, va="center_baseline", fontsize=9, color=INK)
    axes.scatter(
        np.full(classes, -0.025), rows, s=60, c=colors, marker="s", linewidths=0.5, edgecolors=MUTED,
        transform=axes.get_yaxis_transform(), clip_on=False,
    )  # fmt: skip
    axes.set_xlim(0, 1.1 * top)
    axes.set_ylim(classes - 0.4, -0.6)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(rows, short_names(labels), fontsize=9, parse_math=False)
    axes.tick_params(axis="y", pad=16)
    return figure


def height_of(classes: int) -> float:
    """Inches of a plot with a row for each class; plots beside each other align."""
    return min(max(SHORT, 0.35 * classes + 1.6), TALL)


def short_names(labels: LabelSet) -> list[str]:
    """Class names by class index, each at most `NAME_LENGTH` long."""
    return [x if len(x) <= NAME_LENGTH else x[: NAME_LENGTH - 1] + "…" for x in labels.names]
