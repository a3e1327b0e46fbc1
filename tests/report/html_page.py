"""What tests read off a page: its tags, its text, the cells of its tables, and its pictures as arrays."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from unet.data.image import Array
from unet.data.labels import Label, LabelSet
from unet.report.comparison import SamplePrediction


class Page(HTMLParser):
    """The tags of index.html with their attributes, what a reader sees of its text, and the text of each cell."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.cells: list[str] = []
        self._within, self._in_cell = "", False
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
            self._in_cell = True

    def handle_data(self, data: str) -> None:
        if self._within in ("style", "script"):
            return
        self.text += data
        if self._in_cell:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._within = ""
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def all(self, tag: str, attribute: str) -> list[str]:
        """The values of an attribute of every such tag; "None" where a tag lacks it."""
        return [str(attributes.get(attribute)) for name, attributes in self.tags if name == tag]

    def pictures(self) -> list[Array]:
        """Every img, decoded: HWC uint8 RGB."""
        return [np.asarray(opened(source).convert("RGB")) for source in self.all("img", "src")]


def opened(source: str) -> Image.Image:
    """The picture of a data URI."""
    head, data = source.split(",", 1)
    kind = {"data:image/png;base64": "PNG", "data:image/jpeg;base64": "JPEG"}[head]
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=[kind])


def assert_alone(html: bytes, *beside: str) -> None:
    """The page is one file below 5 MB that fetches nothing and links to nothing but `beside` and its own sections."""
    assert len(html) < 5_000_000
    page = Page(html)
    sections = {f"#{name}" for name in page.all("section", "id")}
    assert set(page.all("a", "href")) == sections | set(beside)
    assert {tag for tag, attributes in page.tags if "src" in attributes} <= {"img"}
    assert {tag for tag, attributes in page.tags if "href" in attributes} <= {"a", "image"}
    assert all(source.startswith("data:") for source in page.all("img", "src") + page.all("image", "href"))
    assert all(page.all("img", "alt"))
    assert "link" not in [tag for tag, _ in page.tags]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "default-src 'none'" in page.all("meta", "content")[-1]
    assert page.pictures() is not None  # every one of them can be decoded


MANY_LABELS = LabelSet(tuple(Label(value=i, name=f"{i} {'é' * 300}", color=(i, 0, 255 - i)) for i in range(250)))
"""As many classes as fit, with long names."""


def noise(name: str, rng: np.random.Generator) -> SamplePrediction:
    """A prediction of MANY_LABELS that no format compresses."""
    masks = rng.integers(0, 250, (2, 600, 800), dtype=np.uint8)
    image = rng.integers(0, 256, (600, 800, 3), dtype=np.uint8)
    return SamplePrediction(name=name, image=image, truth=masks[0], prediction=masks[1])
