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
from unet.report.page import data_uri, escape_html, truncate_middle

WIDTH, HEIGHT = 560, 280
"""Units of a plot's view box; a matrix has another height."""
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 48
"""Margins around the axes."""
MAX_POINTS, MAX_DOTS = 400, 60
"""Most points of a line, and most points that are marked by dots."""
SERIES_CLASSES = ("first", "second")
"""CSS classes of the series, which have its colours."""

MAX_NUMBERED, MAX_NAMED = 20, 60
"""Most classes with which a matrix shows numbers, and names."""
SHARE_COLOR = (0, 114, 178)
"""RGB of a share of 1 in a matrix; lower ones are more transparent."""

Point = tuple[float, float]
Format = Callable[[float], str]


@dataclass(frozen=True)
class ReferenceLine:
    """A dotted line across a plot, at a value of one axis."""

    at: float
    name: str


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """The ranges of the axes, and where values lie in the view box."""

    x: tuple[float, float]
    y: tuple[float, float]

    def to_view(self, x: float, y: float) -> Point:
        right = (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
        up = (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
        return LEFT + right, HEIGHT - BOTTOM - up


def format_number(value: float) -> str:
    """Return a number in at most six digits."""
    return f"{value:,.6g}"


def format_axis_percent(value: float) -> str:
    """Return a ratio in percent, for an axis."""
    return f"{100 * value:.3g}%"


def line_plot(
    title: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    *,
    x_name: str,
    y_top: float | None = None,
    y_format: Format = format_number,
    vertical: ReferenceLine | None = None,
) -> str:
    """Return a plot of at most two named lines over whole numbers x; y begins at 0."""
    points = [point for _, line in series for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points if math.isfinite(y)]
    axes = _Axes(x=(min(xs) - 0.5, max(xs) + 0.5), y=(0, y_top or 1.05 * max(ys, default=1) or 1))
    elements = list(_draw_axes(axes, x_name, ticks(min(xs), max(xs), whole=True), format_number, y_format))
    if vertical:
        elements.append(_draw_vertical(axes, vertical))
    keys = []
    for css_class, (name, line) in zip(SERIES_CLASSES, series, strict=False):
        elements += _draw_line(axes, css_class, name, line, x_name)
        keys.append((name, css_class))
    return _figure(title, elements, keys + _dotted_keys(vertical))


def bar_plot(
    title: str,
    edges: Sequence[float],
    heights: Sequence[float],
    *,
    x_name: str,
    x_format: Format = format_number,
    horizontal: ReferenceLine | None = None,
    vertical: ReferenceLine | None = None,
) -> str:
    """Return a plot of bars side by side between `edges`, one more than `heights`."""
    top = 1.1 * max(*heights, horizontal.at if horizontal else 0, 0) or 1
    axes = _Axes(x=(edges[0], edges[-1]), y=(0, top))
    elements = list(_draw_axes(axes, x_name, ticks(edges[0], edges[-1]), x_format, format_number))
    for start, end, height in zip(edges[:-1], edges[1:], heights, strict=True):
        (x, y), (right, bottom) = axes.to_view(start, height), axes.to_view(end, 0)
        tooltip = f"<title>{x_format(start)} to {x_format(end)}: {format_number(height)}</title>"
        size = f'width="{max(right - x - 1, 0.5):.1f}" height="{bottom - y:.1f}"'
        elements.append(f'<rect class="bar first" x="{x + 0.5:.1f}" y="{y:.1f}" {size}>{tooltip}</rect>')
    if horizontal:
        elements.append(_draw_horizontal(axes, "mark", horizontal.at))
    if vertical:
        elements.append(_draw_vertical(axes, vertical))
    return _figure(title, elements, _dotted_keys(horizontal, vertical))


def matrix_plot(
    title: str, shares: npt.NDArray[np.float64], names: Sequence[str], axes: tuple[str, str] = ("truth", "prediction")
) -> str:
    """Return shares of each row, [C, C], NaN in rows of which there is nothing, as colours; few ones as numbers too.

    `axes`: what rows and columns are."""
    classes = len(names)
    labels = [truncate_middle(name, 14) for name in names] if classes <= MAX_NAMED else []
    left = 32 + 7.5 * max(map(len, labels), default=0)
    cell = (WIDTH - left - RIGHT) / classes
    side = cell * classes
    elements = [
        f'<image href="{data_uri(_heatmap(shares))}" x="{left}" y="{TOP}" width="{side:.1f}" height="{side:.1f}"/>',
        f'<rect class="frame" x="{left}" y="{TOP}" width="{side:.1f}" height="{side:.1f}"/>',
    ]
    if classes <= MAX_NUMBERED:
        style = ' style="font-size: 10px"' if classes > 12 else ""
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            kind, x, y = "on" if share > 0.55 else "strong", left + (column + 0.5) * cell, TOP + (row + 0.5) * cell
            elements.append(_draw_text(x, y, f"{100 * share:.0f}", "middle", kind=kind, attributes=style))
    style = f' style="font-size: {cell:.1f}px"' if cell < 14 else ""
    for index, label in enumerate(labels):
        center = (index + 0.5) * cell
        rotate = f' transform="rotate(-90 {left + center:.1f} {TOP + side + 8:.1f})"'
        elements.append(_draw_text(left - 8, TOP + center, label, "end", attributes=style))
        elements.append(_draw_text(left + center, TOP + side + 8, label, "end", attributes=style + rotate))
    height, middle = TOP + side + left, TOP + side / 2
    elements.append(_draw_text(left + side / 2, height - 6, axes[1], "middle"))
    elements.append(_draw_text(10, middle, axes[0], "middle", attributes=f' transform="rotate(-90 10 {middle:.1f})"'))
    return _figure(title, elements, [], height=height, kind="matrix")


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return round numbers from `low` to `high`, about five of them, 1, 2 or 5 times a power of ten apart."""
    rough_step = (high - low) / 5 or 1
    power: float = 10.0 ** math.floor(math.log10(rough_step))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough_step * 0.999)
    step = max(step, 1) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _draw_axes(axes: _Axes, x_name: str, x_ticks: Iterable[float], x_format: Format, y_format: Format) -> Iterable[str]:
    for y in ticks(*axes.y):
        yield _draw_horizontal(axes, "grid", y)
        yield _draw_text(LEFT - 8, axes.to_view(0, y)[1], y_format(y), "end")
    yield _draw_horizontal(axes, "axis", axes.y[0])
    for x in x_ticks:
        yield _draw_text(axes.to_view(x, 0)[0], HEIGHT - BOTTOM + 15, x_format(x), "middle")
    yield _draw_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name, "middle")


def _draw_line(axes: _Axes, css_class: str, name: str, points: Sequence[Point], x_name: str) -> Iterable[str]:
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    drawn = finite[:: max(1, math.ceil(len(finite) / MAX_POINTS))]
    drawn += finite[-1:] if drawn[-1:] != finite[-1:] else []
    places = [axes.to_view(x, y) for x, y in drawn]
    yield f'<polyline class="line {css_class}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
    if len(drawn) <= MAX_DOTS:
        for (x, y), (left, top) in zip(drawn, places, strict=True):
            tooltip = f"<title>{escape_html(f'{name}, {x_name} {format_number(x)}: {y:.4g}')}</title>"
            yield f'<circle class="dot {css_class}" cx="{left:.1f}" cy="{top:.1f}" r="3">{tooltip}</circle>'


def _draw_horizontal(axes: _Axes, css_class: str, at: float) -> str:
    y = axes.to_view(0, at)[1]
    return f'<line class="{css_class}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _draw_vertical(axes: _Axes, line: ReferenceLine) -> str:
    x = axes.to_view(line.at, 0)[0]
    return f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'


def _dotted_keys(*lines: ReferenceLine | None) -> list[tuple[str, str]]:
    return [(line.name, "dotted") for line in lines if line]


def _heatmap(shares: npt.NDArray[np.float64]) -> bytes:
    """Return a PNG with a pixel for each share, as opaque as the share is large; grey where there is none."""
    pixels = np.empty((*shares.shape, 4), np.uint8)
    pixels[..., :3] = SHARE_COLOR
    pixels[..., 3] = np.round(255 * np.nan_to_num(shares))
    pixels[np.isnan(shares)] = (128, 128, 128, 40)
    return encode_image(pixels)


def _draw_text(x: float, y: float, text: str, anchor: str, *, kind: str = "", attributes: str = "") -> str:
    css_class = f' class="{kind}"' if kind else ""
    place = f'x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}"'
    return f"<text{css_class} {place}{attributes}>{escape_html(text)}</text>"


def _figure(
    title: str, elements: Iterable[str], keys: Sequence[tuple[str, str]], *, height: float = HEIGHT, kind: str = ""
) -> str:
    """Return a figure of SVG elements. `keys`: names of what is drawn, each with the CSS class of its line."""
    names = "".join(f'<span class="{css_class}">{escape_html(name)}</span>' for name, css_class in keys)
    legend = f'<span class="keys">{names}</span>' if keys else ""
    view = f'class="{kind}" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape_html(title)}"'
    return "\n".join(
        (f'<figure class="plot"><h3>{escape_html(title)}{legend}</h3>\n<svg {view}>', *elements, "</svg></figure>")
    )
