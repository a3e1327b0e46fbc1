"""The plots of a page, as SVG in the page's own type and colours, so that they suit light and dark.

Points are x and y; a y that is NaN is a gap. Every plot is half a page wide, 560 units, and takes the width there is.
Lines and bars are in blue and vermillion of Okabe and Ito, which stay apart for every kind of colour vision.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unet.data.image import encode_image
from unet.report.page import data_uri, html_of, shortened

WIDTH, HEIGHT = 560, 280
"""Of a plot but for a matrix, in units of its view."""
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 48
"""Room around the axes."""
POINTS, DOTTED = 400, 60
"""Most points of a line, and up to how many each has a dot."""
COLORS = ("first", "second")
"""CSS classes of the series."""

NUMBERED, NAMED = 20, 60
"""Up to how many classes a matrix has numbers and names."""
SHARE_COLOR = (0, 114, 178)
"""RGB of a share of 1 in a matrix; lower ones are more transparent."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Mark:
    """A dotted line across a plot."""

    at: float
    name: str


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """Where values lie in the view."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: float) -> float:
        return LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)


def plain(value: float) -> str:
    """A number, short."""
    return f"{value:,.6g}"


def whole_percent(value: float) -> str:
    """A ratio in percent, for an axis."""
    return f"{100 * value:.3g}%"


def line_plot(
    title: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    x_name: str,
    y_top: float | None = None,
    y_format: Format = plain,
    mark: Mark | None = None,
) -> str:
    """At most two named lines over whole numbers x, and a vertical `mark`; y begins at 0."""
    every = [point for _, points in series for point in points]
    xs, ys = [x for x, _ in every], [y for _, y in every if math.isfinite(y)]
    axes = _Axes(x=(min(xs) - 0.5, max(xs) + 0.5), y=(0, y_top or 1.05 * max(ys, default=1) or 1))
    drawn = list(_frame(axes, x_name, ticks(min(xs), max(xs), whole=True), plain, y_format))
    if mark:
        drawn.append(_vertical(axes, mark))
    for color, (name, points) in zip(COLORS, series, strict=False):
        drawn += _line(axes, color, name, points, x_name, y_format)
    keys = [(name, color) for color, (name, _) in zip(COLORS, series, strict=False)]
    return _figure(title, drawn, [*keys, *([(mark.name, "dotted")] if mark else [])])


def bar_plot(
    title: str,
    edges: Sequence[float],
    heights: Sequence[float],
    *,
    x_name: str,
    x_format: Format = plain,
    level: Mark | None = None,
    mark: Mark | None = None,
) -> str:
    """Bars side by side between `edges`, one more than `heights`; `level` lies across them, `mark` is vertical."""
    top = 1.1 * max(*heights, level.at if level else 0, 0) or 1
    axes = _Axes(x=(edges[0], edges[-1]), y=(0, top))
    drawn = list(_frame(axes, x_name, ticks(edges[0], edges[-1]), x_format, plain))
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        x, y, width = axes.across(left), axes.down(height), axes.across(right) - axes.across(left)
        said = f"<title>{x_format(left)} to {x_format(right)}: {plain(height)}</title>"
        size = f'width="{max(width - 1, 0.5):.1f}" height="{HEIGHT - BOTTOM - y:.1f}"'
        drawn.append(f'<rect class="bar first" x="{x + 0.5:.1f}" y="{y:.1f}" {size}>{said}</rect>')
    if level:
        y = axes.down(level.at)
        drawn.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    if mark:
        drawn.append(_vertical(axes, mark))
    return _figure(title, drawn, [(line.name, "dotted") for line in (level, mark) if line])


def matrix_plot(title: str, shares: npt.NDArray[np.float64], names: Sequence[str]) -> str:
    """Shares of each row, [C, C], NaN in rows of which there is nothing; as colour and, for few classes, numbers."""
    classes = len(names)
    shown = [shortened(name, 14) for name in names] if classes <= NAMED else []
    left = 32 + 7.5 * max(map(len, shown), default=0)
    cell = (WIDTH - left - RIGHT) / classes
    side = cell * classes
    drawn = [
        f'<image href="{data_uri(_heat(shares))}" x="{left}" y="{TOP}" width="{side:.1f}" height="{side:.1f}"/>',
        f'<rect class="frame" x="{left}" y="{TOP}" width="{side:.1f}" height="{side:.1f}"/>',
    ]
    if classes <= NUMBERED:
        size = ' style="font-size: 10px"' if classes > 12 else ""
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            kind, x, y = "on" if share > 0.55 else "strong", left + (column + 0.5) * cell, TOP + (row + 0.5) * cell
            drawn.append(_text(x, y, f"{100 * share:.0f}", "middle", kind=kind, more=size))
    size = f' style="font-size: {cell:.1f}px"' if cell < 14 else ""
    for place, name in enumerate(shown):
        at = (place + 0.5) * cell
        turned = f' transform="rotate(-90 {left + at:.1f} {TOP + side + 8:.1f})"'
        drawn.append(_text(left - 8, TOP + at, name, "end", more=size))
        drawn.append(_text(left + at, TOP + side + 8, name, "end", more=size + turned))
    height = TOP + side + left
    drawn.append(_text(left + side / 2, height - 6, "prediction", "middle"))
    drawn.append(_text(10, TOP + side / 2, "truth", "middle", more=f' transform="rotate(-90 10 {TOP + side / 2:.1f})"'))
    return _figure(title, drawn, [], height=height, kind="matrix")


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about five of them, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / 5 or 1
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    step = max(step, 1) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _frame(axes: _Axes, x_name: str, x_ticks: Iterable[float], x_format: Format, y_format: Format) -> Iterable[str]:
    for y in ticks(*axes.y):
        place = axes.down(y)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
        yield _text(LEFT - 8, place, y_format(y), "end")
    bottom = HEIGHT - BOTTOM
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    for x in x_ticks:
        yield _text(axes.across(x), bottom + 15, x_format(x), "middle")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name, "middle")


def _line(
    axes: _Axes, color: str, name: str, points: Sequence[tuple[float, float]], x_name: str, y_format: Format
) -> Iterable[str]:
    known = [(x, y) for x, y in points if math.isfinite(y)]
    shown = known[:: max(1, math.ceil(len(known) / POINTS))]
    shown += known[-1:] if shown[-1:] != known[-1:] else []
    places = [(axes.across(x), axes.down(y)) for x, y in shown]
    yield f'<polyline class="line {color}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
    if len(shown) <= DOTTED:
        for (x, y), (left, top) in zip(shown, places, strict=True):
            said = html_of(f"{name}, {x_name} {plain(x)}: {y:.4g}")
            yield f'<circle class="dot {color}" cx="{left:.1f}" cy="{top:.1f}" r="3"><title>{said}</title></circle>'


def _vertical(axes: _Axes, mark: Mark) -> str:
    x = axes.across(mark.at)
    return f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'


def _heat(shares: npt.NDArray[np.float64]) -> bytes:
    """A pixel for each share, as opaque as the share is large; grey where there is none."""
    pixels = np.empty((*shares.shape, 4), np.uint8)
    pixels[..., :3] = SHARE_COLOR
    pixels[..., 3] = np.round(255 * np.nan_to_num(shares))
    pixels[np.isnan(shares)] = (128, 128, 128, 40)
    return encode_image(pixels)


def _text(x: float, y: float, text: str, anchor: str, *, kind: str = "", more: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    place = f'x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}"'
    return f"<text{kind} {place}{more}>{html_of(text)}</text>"


def _figure(
    title: str, drawn: Iterable[str], keys: Sequence[tuple[str, str]], *, height: float = HEIGHT, kind: str = ""
) -> str:
    shown = "".join(f'<span class="{color}">{html_of(name)}</span>' for name, color in keys)
    legend = f'<span class="keys">{shown}</span>' if keys else ""
    view = f'class="{kind}" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html_of(title)}"'
    return "\n".join(
        (f'<figure class="plot"><h3>{html_of(title)}{legend}</h3>\n<svg {view}>', *drawn, "</svg></figure>")
    )
