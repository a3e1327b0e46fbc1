"""A training page of three epochs."""

from typing import Any

import numpy as np

from unet.data.labels import IGNORE, Label, LabelSet
from unet.model.metrics import ConfusionMatrix
from unet.report.comparison import SamplePrediction
from unet.report.training import training_report

LABELS = LabelSet(
    (
        Label(value=0, name="<b>road & co", color=(200, 0, 0)),
        Label(value=1, name="$sky$ \\of", color=(0, 200, 0)),
        Label(value=2, name="a sign of a class whose name is long", color=(0, 0, 200)),
        Label(value=3, name="void", color=(0, 0, 0), ignore=True),
    )
)


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    row = {"epoch": number, "step": 4 * number, "train_loss": 1.0 / number, "val_loss": 1.2 / number,
           "val_pixel_accuracy": 0.8, "val_miou": 0.4, "val_mdice": 0.5,
           "val_iou": dict(zip(LABELS.names, (0.7, 0.5, None), strict=True))}  # fmt: skip
    return row | changes


def sample(name: str = "a/b.jpg", size: tuple[int, int] = (24, 32)) -> SamplePrediction:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, size, dtype=np.uint8)
    truth[0] = IGNORE
    prediction = np.where(truth == IGNORE, 0, truth).astype(np.uint8)
    return SamplePrediction(
        name=name, image=rng.integers(0, 256, (*size, 3), dtype=np.uint8), truth=truth, prediction=prediction
    )


def report(**changes: Any) -> bytes:
    given: dict[str, Any] = {
        "title": "a run",
        "facts": {"Parameters": "1,234"},
        "labels": LABELS,
        "history": [epoch(1), epoch(2), epoch(3)],
        "confusion": ConfusionMatrix(np.array([[5, 1, 0], [2, 8, 0], [0, 0, 0]])),
        "samples": [sample()],
    }
    return training_report(**given | changes)
