"""An evaluation page of two scenes."""

import math
from typing import Any

import numpy as np

from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import SamplePrediction
from unet.report.evaluation import ImageScore, evaluation_report
from unet.sample.scene import draw_scene
from unet.sample.things import LABELS


def scene(seed: int) -> SamplePrediction:
    image, truth = draw_scene(seed)
    prediction = np.roll(truth, 5, 1) % len(LABELS.classes)  # a prediction is never void
    return SamplePrediction(name=f"scene-{seed}.png", image=image, truth=truth, prediction=prediction)


def score(key: str, miou: float) -> ImageScore:
    return ImageScore(key=key, height=96, width=128, pixels=12_000, pixel_accuracy=0.9, miou=miou)


def against(value: float = 0.0123) -> dict[str, Any]:
    """What scores.json says of another model: each class by as much worse, and the last one nowhere."""
    difference = {"value": value, "low": value - 0.01, "high": value + 0.01}
    classes = {name: {"iou": 0.5, "iou_difference": difference} for name in LABELS.names}
    classes[LABELS.names[-1]] = {"iou": math.nan, "iou_difference": dict.fromkeys(difference, math.nan)}
    return {
        "model": "runs/<old>/model",
        "miou": 0.5,
        "miou_difference": difference,
        "resamples": 10_000,
        "classes": classes,
    }


def report(**changes: Any) -> bytes:
    samples = [scene(0), scene(1)]
    confusion = ConfusionMatrix.empty(len(LABELS.classes))
    for sample in samples:
        confusion.add(sample.truth, sample.prediction)
    given: dict[str, Any] = {
        "title": "CamVid",
        "facts": {"Model": "runs/street/model"},
        "labels": LABELS,
        "confusion": confusion,
        "images": [score("a.png", 0.75), score("b.png", 0.25), score("void.png", math.nan)],
        "worst": samples[:1],
        "best": samples[1:],
        "against": against(),
    }
    return evaluation_report(**given | changes)
