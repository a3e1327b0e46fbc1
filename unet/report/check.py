"""The page of a check: what was counted in a labelled set, the shares of its classes, and samples with their masks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from unet.data.image import Array, as_rgb, encode_image, encode_indexed, overlay, resize_image, resize_mask, size_within
from unet.data.labels import IGNORE, LabelSet
from unet.data.statistics import SetStatistics
from unet.report.comparison import PANEL_SIDE
from unet.report.page import MAX_PICTURES, escape_html, image_tag, legend, render_page, take_up_to, truncate_middle
from unet.report.score_tables import class_cells
from unet.report.tables import count_cell, ratio_cell, sortable_table

PARTS = ("Training", "Validation")

MAX_SIZES = 12
"""Rows of the table of sizes."""


@dataclass(frozen=True, kw_only=True)
class LabelledSample:
    """An image and its mask."""

    name: str
    """Key of the image."""
    image: Array
    """HWC uint8."""
    mask: Array
    """HW uint8 class indices."""


def check_report(
    *,
    title: str,
    facts: Mapping[str, str],
    labels: LabelSet,
    statistics: tuple[SetStatistics, SetStatistics],
    samples: Iterable[LabelledSample],
) -> bytes:
    """Return the page as HTML. `facts` are shown as they are, label and value."""
    pixels = sum(int(part.pixels.sum()) for part in statistics)
    missing = [name for name, share in zip(labels.names, statistics[0].shares, strict=True) if not share]
    headline = {part: f"{counted.sizes.total():,}" for part, counted in zip(PARTS, statistics, strict=True)} | {
        "Classes": f"{len(labels.names) - len(missing)} of {len(labels.names)}",
        "Labelled pixels": f"{pixels / 1e6:,.1f} M",
    }
    nothing = f"<p>No training pixel: {escape_html(', '.join(missing))}.</p>" if missing else ""
    damaged = [row for part in statistics for row in part.damaged.items()]
    sections = {
        "Classes": nothing + _classes(labels, statistics),
        "Sizes": _sizes(statistics),
        "Left out": sortable_table("Damaged pairs", ("Image", "Reason"), damaged) if damaged else "",
        "Samples": "\n".join((_legend(labels), *take_up_to(MAX_PICTURES, _figures(samples, labels)))),
    }
    return render_page(title, "Check", headline, {**facts, **_seen(statistics)}, sections)


def _seen(statistics: tuple[SetStatistics, SetStatistics]) -> dict[str, str]:
    """Return what was seen that not every set has."""
    both = SetStatistics(np.zeros_like(statistics[0].pixels))
    for part in statistics:
        both.add(part)
    counts = {
        "Masks read by their colours": both.by_color,
        "Images turned by EXIF": both.turned.total(),
        "Ignored pixels": both.ignored,
        "Pixels without data": both.no_data,
    }
    return {name: f"{count:,}" for name, count in counts.items() if count}


def _classes(labels: LabelSet, statistics: tuple[SetStatistics, SetStatistics]) -> str:
    train, val = (part.shares.tolist() for part in statistics)
    pixels = (statistics[0].pixels + statistics[1].pixels).tolist()
    most = max(max(train), 1e-9)
    rows = [
        (name, ratio_cell(share, bar=share / most), ratio_cell(other), count_cell(count))
        for name, share, other, count in zip(class_cells(labels), train, val, pixels, strict=True)
    ]
    return sortable_table("Share of pixels by class", ("Class", *PARTS, "Pixels"), rows)


def _sizes(statistics: tuple[SetStatistics, SetStatistics]) -> str:
    train, val = (part.sizes for part in statistics)
    commonest = (train + val).most_common(MAX_SIZES)
    rows = [(f"{size[0]} x {size[1]}", count_cell(train[size]), count_cell(val[size])) for size, _ in commonest]
    more = len(train.keys() | val.keys()) - len(rows)
    return sortable_table("Images by size", ("Height x width", *PARTS), rows) + (
        f"<p>{more:,} more sizes.</p>" if more else ""
    )


def _legend(labels: LabelSet) -> str:
    return legend(
        (f"{label.name} (not scored)" if label.ignore else label.name, label.color) for label in labels.written_labels
    )


def _figures(samples: Iterable[LabelledSample], labels: LabelSet) -> Iterable[str]:
    """Yield a figure of each sample: image, mask, and the mask over the image."""
    for sample in samples:
        size = size_within(PANEL_SIDE, (sample.mask.shape[0], sample.mask.shape[1]))
        image, mask = resize_image(as_rgb(sample.image), size), resize_mask(sample.mask, size)
        shown = {
            "Image": encode_image(image, "JPEG"),
            "Mask": encode_indexed(mask, labels.colors),
            "Overlay": encode_image(overlay(image, mask, labels), "JPEG"),
        }
        panels = "\n".join(
            f'<div class="panel"><span>{title}</span>{image_tag(data, title)}</div>' for title, data in shown.items()
        )
        ignored = sample.mask == IGNORE
        text = f"{len(np.unique(sample.mask[~ignored]))} classes, {ignored.mean():.0%} ignored"
        yield (
            f'<figure class="sample card"><figcaption><strong>{escape_html(truncate_middle(sample.name, 160))}</strong>'
            f'<span>{text}</span></figcaption>\n<div class="panels three">\n{panels}\n</div></figure>'
        )
