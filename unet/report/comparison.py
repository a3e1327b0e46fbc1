"""Samples of a page: image, truth, prediction and errors side by side, and with a slider two of them over each other.

The image is a JPEG, the other three are indexed PNGs, `PANEL_SIDE` pixels a side at most; the page enlarges them.
"""

from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True, kw_only=True)
class SamplePrediction:
    """An image with its truth and its prediction; the three arrays have one height and width."""

    name: str
    """Key of the image."""
    image: Array
    """HWC uint8."""
    truth: Array
    """HW uint8 class indices, `IGNORE` where nothing is scored."""
    prediction: Array
    """HW uint8 class indices."""


def sample_figures(group: str, samples: Sequence[SamplePrediction], labels: LabelSet, limit: int) -> str:
    """Return figures of as many samples as fit `limit` characters, each with its scores; empty without samples.

    `group` is the name of this list of samples among those of the page.
    """
    if not samples:
        return ""
    figures = (_figure(f"{group}-{i}", sample, labels, opened=not i) for i, sample in enumerate(samples))
    parts = list(take_up_to(limit, figures))
    left_out = len(samples) - len(parts)
    note = f"<p>{left_out} more are left out, to keep the page small.</p>" if left_out else ""
    return "\n".join((*parts, note))


def panel_legends(labels: LabelSet) -> str:
    """Return what the colours of the panels stand for."""
    ignored = [(f"{label.name} (not scored)", label.color) for label in labels.written_labels if label.ignore]
    classes: list[tuple[str, RGB]] = [(label.name, label.color) for label in labels.classes]
    errors: list[tuple[str, RGB]] = [("errors: prediction is wrong", WRONG), ("errors: nothing is scored", UNSCORED)]
    return legend(classes + ignored) + "\n" + legend(errors)


def _figure(group: str, sample: SamplePrediction, labels: LabelSet, *, opened: bool) -> str:
    matrix = ConfusionMatrix.empty(len(labels.classes))
    matrix.add(sample.truth, sample.prediction)
    height, width = sample.truth.shape
    name = escape_html(truncate_middle(sample.name, 160))
    scores = f"mean IoU {format_percent(matrix.mean_iou)} · wrong {format_percent(1 - matrix.pixel_accuracy)}"
    panels = "\n".join(
        f'<div class="panel"><span>{title}</span>{image_tag(data, title)}</div>'
        for title, data in zip(("Image", "Truth", "Prediction", "Errors"), _panel_images(sample, labels), strict=True)
    )
    kind = "sample card pixels" if max(height, width) < PIXELATED_SIDE else "sample card"
    return (
        f'<figure class="{kind}" style="--ratio: {width / height:.5f}">\n'
        f"<figcaption><strong>{name}</strong><span>{scores}</span></figcaption>\n"
        f'<div class="panels">\n{panels}\n</div>\n{_slider(group, opened)}\n</figure>'
    )


def _slider(group: str, opened: bool) -> str:
    """Return what page.js shows two panels over each other with; a radio button's value is the index of its panel."""
    buttons = "\n".join(
        f'<label><input type="radio" name="{group}" value="{index}"{checked}> {title}</label>'
        for index, title, checked in ((0, "Image", ""), (2, "Prediction", " checked"), (3, "Errors", ""))
    )
    return (
        f'<details class="compare"{" open" if opened else ""}><summary>Compare with the truth</summary>\n'
        '<div class="stage"></div>\n<div class="controls">\n'
        '<input type="range" min="0" max="100" value="50" aria-label="Where the truth begins">\n'
        f'{buttons}\n<span class="right">Truth</span></div></details>'
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
