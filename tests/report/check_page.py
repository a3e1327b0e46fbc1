"""A page of a check with all that it may show."""

from collections import Counter

import numpy as np

from tests.report.training_page import LABELS
from unet.data.labels import IGNORE
from unet.data.statistics import SetStatistics
from unet.report.check import LabelledSample, check_report


def report() -> bytes:
    """Return the page of a set of 11 pairs, one of them damaged, whose training part lacks a class."""
    classes = len(LABELS.classes)
    train, val = (SetStatistics(np.arange(classes) * 1000) for _ in range(2))
    train.sizes, val.sizes = Counter({(40, 60): 7, (30, 30): 1}), Counter({(40, 60): 2})
    train.ignored, train.by_color, train.damaged = 50, 3, {"<images>/x.png": "is cut off & <empty>"}
    val.pixels[0], val.no_data = 9, 123
    rng = np.random.default_rng(0)
    image, mask = (
        rng.integers(0, 255, (40, 60, 5)).astype(np.uint8),
        rng.integers(0, classes, (40, 60)).astype(np.uint8),
    )
    mask[:4] = IGNORE
    return check_report(
        title="satellite",
        facts={"Labelled set": "s3://tiles"},
        labels=LABELS,
        statistics=(train, val),
        samples=[LabelledSample(name=name, image=image, mask=mask) for name in ("a", "b")],
    )
