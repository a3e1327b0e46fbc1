"""The shell of a page: its HTML, the parts that every page is made of, and how text and pictures get into it.

A page is one file: pictures are data URIs, style and script are its own (page.css, page.js), and its policy forbids the
browser to fetch anything. Parts are strings of HTML; every text from outside is escaped here. `FULL` bounds a page.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template

from unet.data.image import open_image

FULL = 3_500_000
"""Bytes of pictures in a page, at most; with all else it stays below 5 MB."""
LISTED = 40
"""More entries of a legend are folded away."""

RGB = tuple[int, int, int]

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-$digest'">
<title>$title - $kind</title>
<style>
$style</style>
</head>
<body>
<header>
<p class="kind">$kind</p>
<h1>$title</h1>
<nav aria-label="Sections">$links</nav>
</header>
<main>
$body
</main>
<script>$script</script>
</body>
</html>
""")


def render_page(title: str, kind: str, top: Iterable[str], sections: Mapping[str, str]) -> bytes:
    """The bytes of index.html: `top`, and `sections` by heading, all HTML; sections without content are left out.

    `kind` says what the page is of, `title` of which one.
    """
    shown = {heading: content for heading, content in sections.items() if content}
    style, script = (files("unet.report").joinpath(name).read_text() for name in ("page.css", "page.js"))
    return _PAGE.substitute(
        title=html_of(title),
        kind=html_of(kind),
        style=style,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        links="\n".join(f'<a href="#{_anchor(heading)}">{html_of(heading)}</a>' for heading in shown),
        body="\n".join((*top, *(_section(heading, content) for heading, content in shown.items()))),
    ).encode()


def _section(heading: str, content: str) -> str:
    return f'<section id="{_anchor(heading)}">\n<h2>{html_of(heading)}</h2>\n{content}\n</section>'


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def headline(figures: Mapping[str, str]) -> str:
    """The few figures that matter most, large."""
    return _definitions("headline", figures)


def facts_list(facts: Mapping[str, str]) -> str:
    """Facts, label over value."""
    return _definitions("facts", facts)


def _definitions(kind: str, texts: Mapping[str, str]) -> str:
    items = (f"<div><dt>{html_of(name)}</dt><dd>{html_of(text)}</dd></div>" for name, text in texts.items())
    return "\n".join((f'<dl class="{kind}">', *items, "</dl>"))


def pair(*parts: str) -> str:
    """Parts beside each other where there is room."""
    return "\n".join(('<div class="pair">', *parts, "</div>"))


def contact_sheet(pictures: Iterable[tuple[bytes, str]]) -> str:
    """Small pictures in a grid, each its bytes and its name; those beyond `FULL` are left out."""
    figures = within((_thumbnail(data, name) for data, name in pictures), FULL)
    return "\n".join(('<div class="sheet">', *figures, "</div>"))


def _thumbnail(data: bytes, name: str) -> str:
    shown = html_of(name)
    caption = f'<figcaption title="{shown}">{html_of(shortened(name, 48))}</figcaption>'
    return f"<figure>{picture(data, name)}{caption}</figure>"


def picture(data: bytes, alt: str) -> str:
    """A PNG or JPEG; `alt` says in words what it shows."""
    opened = open_image(data)
    size = f'width="{opened.width}" height="{opened.height}"'
    return f'<img src="{data_uri(data)}" {size} alt="{html_of(alt)}" decoding="async">'


def data_uri(data: bytes) -> str:
    """A PNG or JPEG as part of the page."""
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def within(parts: Iterable[str], limit: int) -> Iterable[str]:
    """As many of `parts`, from the first on, as fit `limit` characters."""
    used = 0
    for part in parts:
        used += len(part)
        if used > limit:
            return
        yield part


def swatch(color: RGB) -> str:
    """A small square of a colour."""
    return f'<span class="swatch" style="--color: rgb{color}"></span>'


def legend(colors: Iterable[tuple[str, RGB]]) -> str:
    """What the colours stand for."""
    items = [f"<li>{swatch(color)}{html_of(shortened(name, 80))}</li>" for name, color in colors]
    shown = "\n".join(('<ul class="legend">', *items, "</ul>"))
    return shown if len(items) <= LISTED else f"<details><summary>{len(items)} colours</summary>\n{shown}\n</details>"


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
