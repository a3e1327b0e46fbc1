"""Samples of a page: image, truth, prediction and errors side by side, and with a slider two of them over each other.

The image is a JPEG, the other three are indexed PNGs, `PANEL` pixels a side at most; the page enlarges them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unet.data.image import Array, encode_image, encode_indexed, resize_image, resize_mask
from unet.data.labels import IGNORE, LabelSet
from unet.model.metrics import ConfusionMatrix
from unet.report.page import RGB, html_of, legend, percent, picture, shortened, within

PANEL, SMALL = 480, 240
"""Longest side of a panel [pixels]; images below `SMALL` are enlarged without blur."""
WRONG, UNSCORED = (230, 159, 0), (176, 180, 186)
"""RGB of wrong and of unscored pixels in the panel of errors."""
DIMMED, SHADES = 0.45, 14
"""Brightness of correct pixels in the panel of errors, and their number of greys: with the two colours half a byte."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An image whose prediction is shown; the three arrays have one height and width."""

    name: str
    """Key of the image."""
    image: Array
    """HWC uint8 RGB."""
    truth: Array
    """HW uint8 class indices, `IGNORE` where nothing is scored."""
    prediction: Array
    """HW uint8 class indices."""


def comparisons(name: str, samples: Sequence[Comparison], labels: LabelSet, limit: int) -> str:
    """Samples under each other, as many as fit `limit` characters, each with its scores; empty without any.

    `name` tells one such list of a page from another.
    """
    if not samples:
        return ""
    figures = (_comparison(f"{name}-{i}", sample, labels, opened=not i) for i, sample in enumerate(samples))
    shown = list(within(figures, limit))
    left_out = len(samples) - len(shown)
    note = f"<p>{left_out} more are left out, to keep the page small.</p>" if left_out else ""
    return "\n".join((*shown, note))


def legends(labels: LabelSet) -> str:
    """What the colours of the panels stand for."""
    ignored = [(f"{label.name} (not scored)", label.color) for label in labels.written_labels if label.ignore]
    classes: list[tuple[str, RGB]] = [(label.name, label.color) for label in labels.classes]
    errors: list[tuple[str, RGB]] = [("errors: prediction is wrong", WRONG), ("errors: nothing is scored", UNSCORED)]
    return legend(classes + ignored) + "\n" + legend(errors)


def _comparison(group: str, sample: Comparison, labels: LabelSet, *, opened: bool) -> str:
    matrix = ConfusionMatrix.empty(len(labels.classes))
    matrix.add(sample.truth, sample.prediction)
    height, width = sample.truth.shape
    name = html_of(shortened(sample.name, 160))
    scores = f"mean IoU {percent(matrix.mean_iou)} · wrong {percent(1 - matrix.pixel_accuracy)}"
    panels = zip(("Image", "Truth", "Prediction", "Errors"), _pictures(sample, labels), strict=True)
    kind = "sample card pixels" if max(height, width) < SMALL else "sample card"
    return "\n".join(
        (
            f'<figure class="{kind}" style="--ratio: {width / height:.5f}">',
            f"<figcaption><strong>{name}</strong><span>{scores}</span></figcaption>",
            '<div class="panels">',
            *(f'<div class="panel"><span>{panel}</span>{picture(data, panel)}</div>' for panel, data in panels),
            "</div>",
            *_slider(group, opened),
            "</figure>",
        )
    )


def _slider(group: str, opened: bool) -> Iterable[str]:
    """What page.js makes a comparison of; a choice's value is the place of its panel."""
    yield f'<details class="compare"{" open" if opened else ""}><summary>Compare with the truth</summary>'
    yield '<div class="stage"></div>\n<div class="controls">'
    yield '<input type="range" min="0" max="100" value="50" aria-label="Where the truth begins">'
    for place, choice in ((0, "Image"), (2, "Prediction"), (3, "Errors")):
        checked = " checked" if choice == "Prediction" else ""
        yield f'<label><input type="radio" name="{group}" value="{place}"{checked}> {choice}</label>'
    yield '<span class="right">Truth</span></div></details>'


def _pictures(sample: Comparison, labels: LabelSet) -> tuple[bytes, bytes, bytes, bytes]:
    height, width = sample.truth.shape
    scale = min(1.0, PANEL / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = resize_image(sample.image, size)
    truth, prediction = resize_mask(sample.truth, size), resize_mask(sample.prediction, size)
    return (
        encode_image(image, "JPEG"),
        encode_indexed(truth, labels.colors),
        encode_indexed(prediction, labels.colors),
        _errors(image, truth, prediction),
    )


def _errors(image: Array, truth: Array, prediction: Array) -> bytes:
    """The image dimmed and grey, `WRONG` and `UNSCORED` over it."""
    colors = np.zeros((256, 3), np.uint8)
    colors[:SHADES] = (np.linspace(0, 255 * DIMMED, SHADES).round())[:, None]
    colors[SHADES], colors[SHADES + 1] = WRONG, UNSCORED
    shown = np.round(image.mean(axis=2) * (SHADES - 1) / 255).astype(np.uint8)
    shown[truth != prediction] = SHADES
    shown[truth == IGNORE] = SHADES + 1
    return encode_indexed(shown, colors)
