"""Samples of a page: image, two masks and their differences side by side, and two of these under a slider.

The image is a JPEG, the other three are indexed PNGs, `PANEL_SIDE` pixels a side at most; the page enlarges them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from unet.data.image import Array, as_rgb, encode_image, encode_indexed, resize_image, resize_mask, size_within
from unet.data.labels import IGNORE, LabelSet
from unet.model.metrics import ConfusionMatrix
from unet.report.page import RGB, escape_html, format_percent, image_tag, legend, take_up_to, truncate_middle

PANEL_SIDE, PIXELATED_SIDE = 480, 240
"""Longest side of a panel [pixels]; below what longest side images are enlarged without blur."""
WRONG, UNSCORED = (230, 159, 0), (176, 180, 186)
"""RGB of wrong and of unscored pixels in the panel of errors."""
BRIGHTNESS, GREYS = 0.45, 14
"""Brightness of correct pixels in the panel of errors, and their number of greys: with the two colours half a byte."""


@dataclass(frozen=True)
class Titles:
    """What the panels of a sample are called."""

    panels: tuple[str, str, str, str] = ("Image", "Truth", "Prediction", "Errors")
    over: int = 1
    """Which of the two masks, 1 or 2, the slider shows from itself on to the right."""


@dataclass(frozen=True)
class Panels:
    """The pictures of a sample, as small as the page shows them."""

    name: str
    """Key of the image."""
    size: tuple[int, int]
    """Height and width of the image [pixels]."""
    pictures: tuple[bytes, ...]
    """Files of the image, its two masks and where they differ."""


@dataclass(frozen=True, kw_only=True)
class SamplePrediction:
    """An image with its truth and its prediction, or two masks to compare; the arrays have one height and width."""

    name: str
    """Key of the image."""
    image: Array
    """HWC uint8."""
    truth: Array
    """HW uint8 class indices, `IGNORE` where nothing is scored."""
    prediction: Array
    """HW uint8 class indices."""


def sample_figures(group: str, samples: Iterable[SamplePrediction], labels: LabelSet, limit: int) -> str:
    """Return figures of as many samples as fit `limit` characters, each with its scores; empty without samples.

    `group` is the name of this list of samples among those of the page. Of `samples` one is held at a time.
    """
    return panel_figures(group, ((draw_panels(sample, labels), _scores(sample, labels)) for sample in samples), limit)


def panel_figures(group: str, samples: Iterable[tuple[Panels, str]], limit: int, titles: Titles = Titles()) -> str:
    """Return figures as `sample_figures`, of samples that are drawn already, each with a note."""
    figures = [_figure(f"{group}-{i}", *sample, titles, opened=not i) for i, sample in enumerate(samples)]
    parts = list(take_up_to(limit, figures))
    left_out = len(figures) - len(parts)
    return "\n".join([*parts, *[f"<p>{left_out} more are left out, to keep the page small.</p>"] * bool(left_out)])


def draw_panels(sample: SamplePrediction, labels: LabelSet) -> Panels:
    """Return the pictures of a sample."""
    height, width = sample.truth.shape
    return Panels(sample.name, (height, width), tuple(_panel_images(sample, labels)))


def panel_legends(labels: LabelSet) -> str:
    """Return what the colours of the panels stand for."""
    ignored = [(f"{label.name} (not scored)", label.color) for label in labels.written_labels if label.ignore]
    classes: list[tuple[str, RGB]] = [(label.name, label.color) for label in labels.classes]
    errors: list[tuple[str, RGB]] = [("errors: prediction is wrong", WRONG), ("errors: nothing is scored", UNSCORED)]
    return legend(classes + ignored) + "\n" + legend(errors)


def _scores(sample: SamplePrediction, labels: LabelSet) -> str:
    matrix = ConfusionMatrix.empty(len(labels.classes))
    matrix.add(sample.truth, sample.prediction)
    return f"mean IoU {format_percent(matrix.mean_iou)} · wrong {format_percent(1 - matrix.pixel_accuracy)}"


def _figure(group: str, panels: Panels, note: str, titles: Titles, *, opened: bool) -> str:
    height, width = panels.size
    name = escape_html(truncate_middle(panels.name, 160))
    pictures = "\n".join(
        f'<div class="panel"><span>{title}</span>{image_tag(data, title)}</div>'
        for title, data in zip(titles.panels, panels.pictures, strict=True)
    )
    kind = "sample card pixels" if max(height, width) < PIXELATED_SIDE else "sample card"
    return (
        f'<figure class="{kind}" style="--ratio: {width / height:.5f}">\n'
        f"<figcaption><strong>{name}</strong><span>{note}</span></figcaption>\n"
        f'<div class="panels">\n{pictures}\n</div>\n{_slider(group, titles, opened)}\n</figure>'
    )


def _slider(group: str, titles: Titles, opened: bool) -> str:
    """Return what page.js shows two panels over each other with; a radio button's value is the index of its panel."""
    over = titles.panels[titles.over]
    buttons = "\n".join(
        f'<label><input type="radio" name="{group}" value="{index}"{" checked" * (index == 3 - titles.over)}> {title}'
        "</label>"
        for index, title in enumerate(titles.panels)
        if index != titles.over
    )
    return (
        f'<details class="compare"{" open" if opened else ""}><summary>Compare with the {over.lower()}</summary>\n'
        f'<div class="stage" data-over="{titles.over}"></div>\n<div class="controls">\n'
        f'<input type="range" min="0" max="100" value="50" aria-label="Where the {over.lower()} begins">\n'
        f'{buttons}\n<span class="right">{over}</span></div></details>'
    )


def _panel_images(sample: SamplePrediction, labels: LabelSet) -> Iterable[bytes]:
    height, width = sample.truth.shape
    size = size_within(PANEL_SIDE, (height, width))
    image = resize_image(as_rgb(sample.image), size)
    truth, prediction = resize_mask(sample.truth, size), resize_mask(sample.prediction, size)
    yield encode_image(image, "JPEG")
    yield encode_indexed(truth, labels.colors)
    yield encode_indexed(prediction, labels.colors)
    yield _error_image(image, truth, prediction)


def _error_image(image: Array, truth: Array, prediction: Array) -> bytes:
    """Return the image dimmed and grey, `WRONG` and `UNSCORED` over it."""
    colors = np.zeros((256, 3), np.uint8)
    colors[:GREYS] = (np.linspace(0, 255 * BRIGHTNESS, GREYS).round())[:, None]
    colors[GREYS], colors[GREYS + 1] = WRONG, UNSCORED
    values = np.round(image.mean(axis=2) * (GREYS - 1) / 255).astype(np.uint8)
    values[truth != prediction] = GREYS
    values[truth == IGNORE] = GREYS + 1
    return encode_indexed(values, colors)
