"""What a run tells Prometheus through Ray: how many, how fast, how well.

Every measure is declared in `MEASURES`; rules and dashboards in cluster/observability/ are checked against them. Ray
exports a measure under `ray_NAME`, a counter with `_total`, a histogram with `_bucket`, `_sum` and `_count`. They are
recorded by the driver for a few objects at a time, and by the first training worker every few seconds, never by image.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import ray
from ray.util import metrics

from unet.runtime.background import repeat


@dataclass(frozen=True)
class Measure:
    """A name and what it means. `tags`: what it is told apart by; `bounds`: of a histogram's buckets."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    tags: tuple[str, ...]
    bounds: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names that Prometheus knows it by."""
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        return tuple(f"ray_{self.name}{ending}" for ending in endings[self.kind])


REFRESH_SECONDS = 5.0

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

OBJECTS = Measure("unet_segment_objects", "counter", "Objects settled.", ("output", "status"))
BYTES = Measure("unet_segment_bytes", "counter", "Bytes of the images that were segmented.", ("output",))
STAGE = Measure(
    "unet_segment_stage_seconds",
    "histogram",
    "Seconds that an image spends in a stage; one observation for some images, their mean.",
    ("output", "stage"),
    SECONDS,
)
SEGMENTING = Measure("unet_segment_running", "gauge", "1 while a run goes on.", ("output",))
RUNS = Measure("unet_segment_runs", "counter", "Runs that ended; with 1 also by a crash.", ("output", "code"))
SUCCESS = Measure("unet_segment_success_time_seconds", "counter", "Unix time of a run's end with 0.", ("output",))
"""A counter, though it is none: Ray forgets a gauge some seconds after the driver has ended."""
DRIFT = Measure(
    "unet_segment_drift_psi",
    "gauge",
    "Population stability index against training: of a channel, or of the shares of the classes.",
    ("output", "of"),
)
CONFIDENCE = Measure(
    "unet_segment_confidence_fall", "gauge", "Fall of the mean confidence below that in validation.", ("output",)
)
DRIFTED = Measure("unet_segment_drifted_runs", "counter", "Runs that ended with a drift, by of what.", ("output", "of"))

TRAINED = Measure("unet_train_images", "counter", "Images trained on.", ("run",))
SPEED = Measure("unet_train_images_per_second", "gauge", "Images trained on in a second, of the last epoch.", ("run",))
EPOCH = Measure("unet_train_epoch", "gauge", "Epochs finished.", ("run",))
LOSS = Measure("unet_train_loss", "gauge", "Loss of a recent step.", ("run",))
VALIDATION_LOSS = Measure("unet_train_validation_loss", "gauge", "Validation loss of the last epoch.", ("run",))
ACCURACY = Measure("unet_train_validation_accuracy", "gauge", "Pixel accuracy on the validation images.", ("run",))
MIOU = Measure("unet_train_validation_miou", "gauge", "Mean IoU on the validation images.", ("run",))
TRAINING = Measure("unet_train_running", "gauge", "1 while a run goes on.", ("run",))

MEASURES = (
    *(OBJECTS, BYTES, STAGE, SEGMENTING, RUNS, SUCCESS, DRIFT, CONFIDENCE, DRIFTED),
    *(TRAINED, SPEED, EPOCH, LOSS, VALIDATION_LOSS, ACCURACY, MIOU, TRAINING),
)


def record(measure: Measure, value: float | None, **tags: str) -> None:
    """Add to a counter, set a gauge or observe in a histogram; do nothing without a connection to Ray."""
    if value is None or not ray.is_initialized():
        return
    metric = _metric(measure)
    if measure.kind == "gauge":
        metric.set(value, tags)
    elif measure.kind == "histogram":
        metric.observe(value, tags)
    elif value > 0:
        metric.inc(value, tags)


@cache
def _metric(measure: Measure) -> Any:
    if measure.kind == "histogram":
        return metrics.Histogram(measure.name, measure.about, list(measure.bounds), measure.tags)
    kind = metrics.Counter if measure.kind == "counter" else metrics.Gauge
    return kind(measure.name, measure.about, measure.tags)


def record_objects(counts: Mapping[str, int], size: int, stage_seconds: Mapping[str, float], output: str) -> None:
    """Record settled objects of a segmentation run: how many by status, the bytes of those done, and the mean seconds
    that each of these spent in a stage."""
    for status, count in counts.items():
        record(OBJECTS, count, output=output, status=status)
    record(BYTES, size, output=output)
    for stage, seconds in stage_seconds.items():
        record(STAGE, seconds, output=output, stage=stage)


def record_end(code: int, output: str) -> None:
    """Record how a segmentation run ended."""
    record(RUNS, 1, output=output, code=str(code))
    if code == 0:
        record(SUCCESS, time.time(), output=output)


def record_drift(indices: Mapping[str, float], confidence_fall: float | None, output: str) -> None:
    """Record how far the images so far are from those of training: the index of each channel and of the classes."""
    for name, index in indices.items():
        record(DRIFT, index, output=output, of=name)
    record(CONFIDENCE, confidence_fall, output=output)


def record_drifted(names: Iterable[str], output: str) -> None:
    """Record what has drifted in a run, at its end."""
    for name in names:
        record(DRIFTED, 1, output=output, of=name)


def record_steps(images: int, loss: float, run: str) -> None:
    """Record training steps: `images` since the last call, and the loss of the last step."""
    record(TRAINED, images, run=run)
    record(LOSS, loss, run=run)


def record_epoch(scores: Mapping[str, float | None], run: str) -> None:
    """Record a finished epoch: its number, images/s, and scores of the validation; None where there is none."""
    named = {"images_per_second": SPEED, "epoch": EPOCH, "val_loss": VALIDATION_LOSS}
    named |= {"val_pixel_accuracy": ACCURACY, "val_miou": MIOU}
    for name, measure in named.items():
        record(measure, scores[name], run=run)


@contextmanager
def running_gauge(measure: Measure, **tags: str) -> Iterator[None]:
    """Hold a gauge at 1 within the block, set again and again: Ray exports one for 10 to 20 s after it was set."""
    record(measure, 1, **tags)
    with repeat(partial(record, measure, 1, **tags), REFRESH_SECONDS):
        yield
