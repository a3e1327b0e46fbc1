"""The shell of a page: its HTML, the parts that every page is made of, and how text and pictures get into it.

A page is one file: pictures are data URIs, style and script are its own (page.css, page.js), and its policy forbids the
browser to fetch anything. Parts are strings of HTML; every text from outside is escaped here. `MAX_PICTURES` bounds a
page.
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

MAX_PICTURES = 3_500_000
"""Characters that the pictures of a page may take; with all else it stays below 5 MB."""
MAX_LEGEND = 40
"""Entries of a legend that is shown unfolded."""

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


def render_page(
    title: str, kind: str, headline: Mapping[str, str], facts: Mapping[str, str], sections: Mapping[str, str]
) -> bytes:
    """Return a page of HTML in UTF-8. `kind` names what the page is about, `title` which one of these.

    `headline` is the few figures that matter most, shown large, and `facts` what else is worth a line: texts by label.
    `sections` is HTML by heading; those without content are left out.
    """
    contents = {heading: content for heading, content in sections.items() if content}
    parts = (_section(heading, content) for heading, content in contents.items())
    style, script = (files("unet.report").joinpath(name).read_text() for name in ("page.css", "page.js"))
    return _PAGE.substitute(
        title=escape_html(title),
        kind=escape_html(kind),
        style=style,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        links="\n".join(f'<a href="#{_section_id(heading)}">{escape_html(heading)}</a>' for heading in contents),
        body="\n".join((_definitions("headline", headline), _definitions("facts", facts), *parts)),
    ).encode()


def _section(heading: str, content: str) -> str:
    return f'<section id="{_section_id(heading)}">\n<h2>{escape_html(heading)}</h2>\n{content}\n</section>'


def _section_id(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _definitions(kind: str, texts: Mapping[str, str]) -> str:
    items = (f"<div><dt>{escape_html(name)}</dt><dd>{escape_html(text)}</dd></div>" for name, text in texts.items())
    return "\n".join((f'<dl class="{kind}">', *items, "</dl>"))


def side_by_side(*parts: str) -> str:
    """Return parts beside each other where the window is wide enough, else one below the other."""
    return "\n".join(('<div class="side-by-side">', *parts, "</div>"))


def contact_sheet(pictures: Iterable[tuple[bytes, str]]) -> str:
    """Return small pictures in a grid, each its bytes and its name; those beyond `MAX_PICTURES` are left out."""
    thumbnails = take_up_to(MAX_PICTURES, (_thumbnail(data, name) for data, name in pictures))
    return "\n".join(('<div class="sheet">', *thumbnails, "</div>"))


def _thumbnail(data: bytes, name: str) -> str:
    caption = f'<figcaption title="{escape_html(name)}">{escape_html(truncate_middle(name, 48))}</figcaption>'
    return f"<figure>{image_tag(data, name)}{caption}</figure>"


def image_tag(data: bytes, alt: str) -> str:
    """Return an `img` of a PNG or JPEG; `alt` says in words what it shows."""
    picture = open_image(data)
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{data_uri(data)}" {size} alt="{escape_html(alt)}" decoding="async">'


def data_uri(data: bytes) -> str:
    """Return the URI that holds a PNG or JPEG itself."""
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def take_up_to(limit: int, parts: Iterable[str]) -> Iterable[str]:
    """Yield as many of `parts`, from the first on, as together have at most `limit` characters."""
    used = 0
    for part in parts:
        used += len(part)
        if used > limit:
            return
        yield part


def swatch(color: RGB) -> str:
    """Return a small square of a colour."""
    return f'<span class="swatch" style="--color: rgb{color}"></span>'


def legend(colors: Iterable[tuple[str, RGB]]) -> str:
    """Return a list of what colours stand for; a long one is folded away."""
    items = [f"<li>{swatch(color)}{escape_html(truncate_middle(name, 80))}</li>" for name, color in colors]
    entries = "\n".join(('<ul class="legend">', *items, "</ul>"))
    if len(items) <= MAX_LEGEND:
        return entries
    return f"<details><summary>{len(items)} colours</summary>\n{entries}\n</details>"


def truncate_middle(text: str, length: int) -> str:
    """Return `text`, its middle left out if it is longer than `length`; the end, which tells names apart, stays."""
    kept = length - 1
    return text if len(text) <= length else f"{text[: kept // 3]}…{text[len(text) - (kept - kept // 3) :]}"


def escape_html(text: str) -> str:
    """Return HTML that shows `text`; control characters, and what no file can hold, show as their escapes."""
    return escape(_UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text))


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, line breaks, what turns the direction of text, and halves of surrogate pairs."""


def format_percent(ratio: float) -> str:
    """Return a ratio in percent, or n/a where it is not finite."""
    return f"{ratio:.1%}" if math.isfinite(ratio) else "n/a"
