"""Tables of a page that its reader sorts: by a click on a heading, or by the keyboard.

A cell is a text, or a `Cell` where it has more than that. A column whose first cell has a value is one of numbers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unet.report.page import RGB, html_of, percent, swatch

LONG = 30
"""More rows scroll in a box of their own."""
SHORT = 14
"""Texts of so many letters are not broken."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a table shows at one place."""

    text: str
    value: float | None = None
    """What a column of numbers is sorted by; NaN is last either way."""
    bar: float | None = None
    """Length of a bar behind the text, 0..1."""
    color: RGB | None = None
    """Colour of a square before the text."""


def ratio_cell(ratio: float) -> Cell:
    """A ratio in percent."""
    return Cell(text=percent(ratio), value=ratio)


def count_cell(count: int) -> Cell:
    """A whole number."""
    return Cell(text=f"{count:,}", value=count)


def sortable_table(
    name: str, columns: Sequence[str], rows: Iterable[Sequence[str | Cell]], *, ascending: str | None = None
) -> str:
    """A table called `name` with a row of cells for each of `rows`, which come sorted by the column `ascending`."""
    cells = [[Cell(text=cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    first = cells[0] if cells else [Cell(text="")] * len(columns)
    head = "".join(_heading(title, cell, title == ascending) for title, cell in zip(columns, first, strict=True))
    body = ("<tr>" + "".join(map(_data, row)) + "</tr>" for row in cells)
    kind = "rows long" if len(cells) > LONG else "rows"
    return "\n".join(
        (
            f'<div class="card"><div class="{kind}" role="region" tabindex="0" aria-label="{html_of(name)}">',
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>",
            *body,
            "</tbody>\n</table></div></div>",
        )
    )


def _heading(title: str, cell: Cell, ascending: bool) -> str:
    kind, order = "" if cell.value is None else _kind(cell), ' aria-sort="ascending"' if ascending else ""
    return f'<th scope="col"{kind}{order}><button type="button">{html_of(title)}</button></th>'


def _data(cell: Cell) -> str:
    known = cell.value is not None and math.isfinite(cell.value)
    value = f' data-value="{cell.value:.9g}"' if known else ""
    bar = f' style="--bar: {100 * min(cell.bar, 1):.2f}%"' if cell.bar is not None and math.isfinite(cell.bar) else ""
    return f"<td{_kind(cell)}{value}{bar}>{swatch(cell.color) if cell.color else ''}{html_of(cell.text)}</td>"


def _kind(cell: Cell) -> str:
    if cell.value is None:
        return ' class="short"' if len(cell.text) <= SHORT else ""
    return ' class="number"' if cell.bar is None else ' class="number bar"'
