"""Tables of a page that its reader sorts: by a click on a heading, or by the keyboard.

A cell is a text, or a `Cell` where it has more than that. A column whose first cell has a value is one of numbers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unet.report.page import RGB, escape_html, format_percent, swatch

SCROLLED_ROWS = 30
"""A table of more rows scrolls in a box of its own."""
UNBROKEN_LETTERS = 14
"""Texts of at most so many letters stay on one line."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a table shows at one place."""

    text: str
    value: float | None = None
    """What a column of numbers is sorted by; NaN is last in either direction."""
    bar: float | None = None
    """Length of a bar behind the text, 0..1."""
    color: RGB | None = None
    """Colour of a square before the text."""
    link: str | None = None
    """Where the text leads to, relative to the page."""


def ratio_cell(ratio: float, *, bar: float | None = None) -> Cell:
    """Return a cell with a ratio in percent."""
    return Cell(text=format_percent(ratio), value=ratio, bar=bar)


def count_cell(count: int) -> Cell:
    """Return a cell with a whole number."""
    return Cell(text=f"{count:,}", value=count)


def sortable_table(
    name: str, columns: Sequence[str], rows: Iterable[Sequence[str | Cell]], *, ascending: str | None = None
) -> str:
    """Return a table called `name`. `ascending` names the column by which `rows` are sorted already."""
    cells = [[Cell(text=cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    first_row = cells[0] if cells else [Cell(text="")] * len(columns)
    headings = zip(columns, first_row, strict=True)
    head = "".join(_header_cell(title, cell, ascending=title == ascending) for title, cell in headings)
    body = "\n".join("<tr>" + "".join(map(_data_cell, row)) + "</tr>" for row in cells)
    kind = "rows long" if len(cells) > SCROLLED_ROWS else "rows"
    return (
        f'<div class="card"><div class="{kind}" role="region" tabindex="0" aria-label="{escape_html(name)}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div></div>"
    )


def _header_cell(title: str, first: Cell, *, ascending: bool) -> str:
    kind, order = "" if first.value is None else _class(first), ' aria-sort="ascending"' if ascending else ""
    return f'<th scope="col"{kind}{order}><button type="button">{escape_html(title)}</button></th>'


def _data_cell(cell: Cell) -> str:
    value = "" if cell.value is None or not math.isfinite(cell.value) else f' data-value="{cell.value:.9g}"'
    bar = "" if cell.bar is None or not math.isfinite(cell.bar) else f' style="--bar: {100 * min(cell.bar, 1):.2f}%"'
    text = escape_html(cell.text)
    shown = text if cell.link is None else f'<a href="{escape_html(cell.link)}">{text}</a>'
    return f"<td{_class(cell)}{value}{bar}>{swatch(cell.color) if cell.color else ''}{shown}</td>"


def _class(cell: Cell) -> str:
    if cell.value is None:
        return ' class="short"' if len(cell.text) <= UNBROKEN_LETTERS else ""
    return ' class="number"' if cell.bar is None else ' class="number bar"'
