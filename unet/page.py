"""The shell of a page: its HTML and CSS, and the parts that every page is made of.

A page is a folder with index.html and the pictures it shows. It opens from a local disk: relative links, no script,
nothing fetched. Parts are strings of HTML; every text from outside is escaped here, but for a caption, which is HTML
already.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from unet.image import size_of


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
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1rem; margin: 0 0 2rem }
dt, th, figcaption { color: var(--muted); font-size: .875rem; font-weight: 400 }
dd { margin: 0; font-size: 2rem; font-weight: 600; line-height: 1.2; white-space: nowrap }
table { border-collapse: collapse }
table + p { margin-top: 1rem }
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
.wide { width: 100%; table-layout: fixed; margin-top: 1rem }
.wide td { padding: .3rem 1.5rem .3rem 0; font-size: .875rem }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(44%, 11rem), 1fr)); gap: 1rem }
.sheet figure { width: 100% }
.sheet img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; object-position: left bottom }
.sheet figcaption { margin-top: .25rem; font-size: .75rem; line-height: 1.4 }
@media (max-width: 40rem) {
  dd { font-size: 1.5rem }
  .wide, .wide tbody { display: block }
  .wide thead { display: none }
  .wide tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line) }
  .wide td { display: block; padding: 0; border: 0 }
  .wide td + td { color: var(--muted) }
}
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


def render_page(title: str, parts: Iterable[str]) -> bytes:
    """The bytes of index.html; `parts` are HTML."""
    return _PAGE.substitute(title=html_of(title), body="\n".join(parts)).encode()


def section(heading: str, *parts: str) -> str:
    """`parts`, which are HTML, under a heading."""
    return "\n".join((f"<section>\n<h2>{html_of(heading)}</h2>", *parts, "</section>"))


def headline(figures: Mapping[str, str]) -> str:
    """The few figures that matter most, large."""
    items = (f"<div><dt>{html_of(k)}</dt><dd>{html_of(v)}</dd></div>" for k, v in figures.items())
    return "\n".join(("<dl>", *items, "</dl>"))


def table(facts: Mapping[str, str]) -> str:
    """Facts, a row for each."""
    rows = (f'<tr><th scope="row">{html_of(k)}</th><td>{html_of(v)}</td></tr>' for k, v in facts.items())
    return "\n".join(("<table>", *rows, "</table>"))


def wide_table(columns: Mapping[str, int], values: Iterable[Sequence[str]]) -> str:
    """A table as wide as the page; `columns` are headings and widths in percent, a row has a value for each column."""
    head = "".join(f'<th scope="col" style="width: {width}%">{html_of(name)}</th>' for name, width in columns.items())
    body = ("<tr>" + "".join(f"<td>{html_of(value)}</td>" for value in row) + "</tr>" for row in values)
    return "\n".join((f'<table class="wide">\n<thead><tr>{head}</tr></thead>\n<tbody>', *body, "</tbody>\n</table>"))


def contact_sheet(pictures: Iterable[tuple[str, bytes, str]]) -> str:
    """Small pictures in a grid; each is its file name, its bytes and the name to show under it."""
    figures = (_thumbnail(*picture) for picture in pictures)
    return "\n".join(('<div class="sheet">', *figures, "</div>"))


def _thumbnail(file: str, data: bytes, name: str) -> str:
    height, width = size_of(data)
    image = f'<img src="{html_of(file)}" width="{width}" height="{height}" alt="{html_of(name)}" loading="lazy">'
    return f'<figure>{image}<figcaption title="{html_of(name)}">{html_of(shortened(name, 48))}</figcaption></figure>'


def linked_picture(picture: Picture, kind: str, caption: str = "") -> str:
    """`picture` of the CSS class `kind`, linked to its file in full size; `caption` is HTML."""
    height, width = (side // picture.density for side in size_of(picture.png))
    name = html_of(picture.name)
    image = f'<img src="{name}" width="{width}" height="{height}" alt="{html_of(picture.alt)}">'
    above = f"<figcaption>{caption}</figcaption>\n" if caption else ""
    return f'<figure class="{kind}">\n{above}<a href="{name}">{image}</a>\n</figure>'


def plots(pictures: Iterable[Picture]) -> str:
    """Plots, two beside each other where there is room."""
    figures = (linked_picture(picture, "plot") for picture in pictures)
    return "\n".join(('<div class="plots">', *figures, "</div>"))


def legend(colors: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    """What the colours (RGB) stand for."""
    items = (f'<li><span style="background: rgb{color}"></span>{html_of(name)}</li>' for name, color in colors)
    return "\n".join(('<ul class="legend">', *items, "</ul>"))


def shortened(text: str, length: int) -> str:
    """`text` with its middle left out where it is longer than `length`; the end, which tells names apart, stays."""
    kept = length - 1
    return text if len(text) <= length else f"{text[: kept // 3]}…{text[len(text) - (kept - kept // 3) :]}"


def html_of(text: str) -> str:
    """`text` as HTML that shows it; control characters and what no file can hold show as their escapes."""
    return escape(_UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, line breaks, what turns the direction of text, and halves of surrogate pairs."""


def percent(ratio: float) -> str:
    """A ratio in percent, or n/a where it is not finite."""
    return f"{ratio:.1%}" if math.isfinite(ratio) else "n/a"
