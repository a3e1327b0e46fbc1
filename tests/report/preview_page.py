"""A preview page of two scenes, of which one changes."""

from typing import Any

import numpy as np

from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import Panels, SamplePrediction, draw_panels
from unet.report.preview import preview_report
from unet.sample.scene import draw_scene
from unet.sample.things import LABELS


def row(key: str, share: float | None, status: str = "done", error: str | None = None) -> dict[str, Any]:
    return {
        "key": key,
        "status": status,
        "error": error,
        "share": share,
        "pixels": 12_288,
        "confidence_before": None,
        "confidence": 0.75,
    }


def summary(confusion: ConfusionMatrix, **changes: Any) -> dict[str, Any]:
    pixels = int(confusion.counts.sum())
    changed = pixels - int(np.trace(confusion.counts))
    given = {
        "preview": "20260101T000000Z-abcd",
        "input": "s3://photos/street",
        "output": "s3://photos/masks",
        "model": "runs/street/model",
        "recorded": 1_000_000,
        "counts": {"done": 2, "mask_missing": 1},
        "pixels": pixels,
        "changed": changed,
        "share": changed / pixels if pixels else None,
        "confidence_before": None,
        "confidence": 0.875,
        "unsure_before": None,
        "unsure": 0.03,
        "classes": list(LABELS.names),
        "only_before": ["<tram>"],
        "only_after": [],
        "matrix": confusion.counts.tolist(),
        "images_per_second": 4.0,
        "hours_for_all": 1_000_000 / 4 / 3600,
        "seconds": 12.0,
    }
    return given | changes


def scene(seed: int, shift: int) -> SamplePrediction:
    image, mask = draw_scene(seed)
    mask %= len(LABELS.classes)
    return SamplePrediction(name=f"scene-{seed}.png", image=image, truth=mask, prediction=np.roll(mask, shift, 1))


def drawn(seed: int, shift: int = 5) -> tuple[Panels, float]:
    sample = scene(seed, shift)
    return draw_panels(sample, LABELS), float((sample.truth != sample.prediction).mean())


def report(**changes: Any) -> bytes:
    confusion = ConfusionMatrix.empty(len(LABELS.classes))
    for sample in (scene(0, 5), scene(1, 0)):
        confusion.add(sample.truth, sample.prediction)
    given: dict[str, Any] = {
        "summary": summary(confusion),
        "labels": LABELS,
        "rows": [row("scene-1.png", 0.0), row("scene-0.png", 0.25), row("c.png", None, "mask_missing", "is not there")],
        "panels": [drawn(0), drawn(2, 3)],
    }
    return preview_report(**given | changes)
