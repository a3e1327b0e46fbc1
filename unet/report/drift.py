"""What a page says of drift: the histogram of each channel beside training, and the shares of the classes beside
validation."""

from collections.abc import Iterable, Mapping
from typing import Any

from unet.data.drift import BINS, MIN_IMAGES, Drift
from unet.data.labels import LabelSet
from unet.report.page import escape_html, side_by_side
from unet.report.plots import format_axis_percent, line_plot
from unet.report.score_tables import class_cells
from unet.report.tables import ratio_cell, sortable_table


def describe_drift(found: Mapping[str, Any] | None) -> str:
    """Return a line about what summary.json says of drift."""
    if found is None:
        return "unknown; the model does not say what it was trained on, and a new training run would"
    text = ", ".join(found["drifted"]) or "none"
    if not found["judged"]:
        text = f"no verdict on fewer than {MIN_IMAGES} images, of the run or of training"
    elif "classes" not in found["judged"]:
        text += f", with no verdict on the masks ({found['reference_masks']:,} in validation)"
    name, index = max(found["psi"].items(), key=lambda item: item[1])
    text += f"; PSI up to {index:.2f} ({name})"
    if found["confidence"] is not None and found["reference_confidence"] is not None:
        text += f", confidence {found['confidence']:.1%} ({found['reference_confidence']:.1%} in validation)"
    return f"{text}, of {found['images']:,} images"


def drift_section(drift: Drift, labels: LabelSet) -> str:
    """Return a section of the page as HTML."""
    figures = [*_histograms(drift), *([_classes(drift, labels)] if "classes" in drift.indices else [])]
    return f"<p>{escape_html(_about(drift))}</p>\n{side_by_side(*figures)}"


def _about(drift: Drift) -> str:
    verdict = f"Drifted: {', '.join(drift.drifted)}." if drift.drifted else "Nothing has drifted."
    if missing := [name for name in (*drift.channels, "classes", "confidence") if name not in drift.judged]:
        verdict = f"{verdict if drift.judged else ''} No verdict on {', '.join(missing)}: too few images.".strip()
    before, now = drift.reference, drift.current
    return (
        f"{verdict} {now.images:,} images of this run beside {before.images:,} of training and {before.masks:,} of "
        f"validation. The population stability index (PSI) is 0 where both are alike; over {drift.limit:g} is drift."
    )


def _histograms(drift: Drift) -> Iterable[str]:
    parts = ("training", drift.reference.mean_histograms), ("this run", drift.current.mean_histograms)
    middles = [(place + 0.5) * 256 / BINS for place in range(BINS)]
    for channel, name in enumerate(drift.channels):
        series = [(part, list(zip(middles, shares[channel].tolist(), strict=True))) for part, shares in parts]
        title = f"{name.capitalize()}, PSI {drift.indices[name]:.2f}"
        yield line_plot(title, series, x_name="sample as the model is given it", y_format=format_axis_percent)


def _classes(drift: Drift, labels: LabelSet) -> str:
    before, now = drift.reference.mean_class_shares.tolist(), drift.current.mean_class_shares.tolist()
    most = max(*before, *now)
    rows = [
        (name, ratio_cell(validation, bar=validation / most), ratio_cell(share, bar=share / most))
        for name, validation, share in zip(class_cells(labels), before, now, strict=True)
    ]
    title = f"Classes, PSI {drift.indices['classes']:.2f}"
    return sortable_table(title, (title, "Validation", "This run"), rows)
