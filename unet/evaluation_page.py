"""The page of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unet.labels import LabelSet
from unet.metrics import ConfusionMatrix
from unet.page import render_page, table
from unet.report import Sample


@dataclass(frozen=True)
class ImageScore:
    """What one image scored."""

    key: str
    height: int
    width: int
    pixels: int
    """That are scored."""
    pixel_accuracy: float
    miou: float


def evaluation_report(
    *,
    title: str,
    facts: Mapping[str, str],
    labels: LabelSet,
    confusion: ConfusionMatrix,
    images: Sequence[ImageScore],
    worst: Sequence[Sample],
    best: Sequence[Sample],
) -> dict[str, bytes]:
    """Files of the page."""
    return {"index.html": render_page(title, [table(facts)])}
