"""What a run tells Prometheus through Ray: how many, how fast, how well.

Every measure is declared in `MEASURES`; rules and dashboards in cluster/observability/ are checked against them. Ray
exports a measure under `ray_NAME`, a counter with `_total`, a histogram with `_bucket`, `_sum` and `_count`. They are
recorded by the driver for each chunk of objects, and by the first training worker every few seconds, never by image.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pyarrow.compute as pc
import ray
from ray.util import metrics

from unet.segment.listing import Chunk
from unet.train.journal import Entry


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
    "Seconds that an image spends in a stage; one observation for each chunk, its mean.",
    ("output", "stage"),
    SECONDS,
)
SEGMENTING = Measure("unet_segment_running", "gauge", "1 while a run goes on.", ("output",))
RUNS = Measure("unet_segment_runs", "counter", "Runs that ended; with 1 also by a crash.", ("output", "code"))
SUCCESS = Measure("unet_segment_success_time_seconds", "counter", "Unix time of a run's end with 0.", ("output",))
"""A counter, though it is none: Ray forgets a gauge some seconds after the driver has ended."""

TRAINED = Measure("unet_train_images", "counter", "Images trained on.", ("run",))
SPEED = Measure("unet_train_images_per_second", "gauge", "Images trained on in a second, of the last epoch.", ("run",))
EPOCH = Measure("unet_train_epoch", "gauge", "Epochs finished.", ("run",))
LOSS = Measure("unet_train_loss", "gauge", "Loss of a recent step.", ("run",))
VALIDATION_LOSS = Measure("unet_train_validation_loss", "gauge", "Validation loss of the last epoch.", ("run",))
ACCURACY = Measure("unet_train_validation_accuracy", "gauge", "Pixel accuracy on the validation images.", ("run",))
MIOU = Measure("unet_train_validation_miou", "gauge", "Mean IoU on the validation images.", ("run",))
TRAINING = Measure("unet_train_running", "gauge", "1 while a run goes on.", ("run",))

MEASURES = (
    *(OBJECTS, BYTES, STAGE, SEGMENTING, RUNS, SUCCESS),
    *(TRAINED, SPEED, EPOCH, LOSS, VALIDATION_LOSS, ACCURACY, MIOU, TRAINING),
)


def record(measure: Measure, value: float | None, **tags: str) -> None:
    """Adds to a counter, sets a gauge or observes; does nothing without a connection to Ray."""
    if value is None or not ray.is_initialized():
        return
    metric = _made(measure)
    if measure.kind == "gauge":
        metric.set(value, tags)
    elif measure.kind == "histogram":
        metric.observe(value, tags)
    elif value > 0:
        metric.inc(value, tags)


@cache
def _made(measure: Measure) -> Any:
    if measure.kind == "histogram":
        return metrics.Histogram(measure.name, measure.about, list(measure.bounds), measure.tags)
    kind = metrics.Counter if measure.kind == "counter" else metrics.Gauge
    return kind(measure.name, measure.about, measure.tags)


def record_chunk(chunk: Chunk, output: str) -> None:
    """A settled chunk of a segmentation run."""
    for count in chunk.rows["status"].value_counts().to_pylist():
        record(OBJECTS, count["counts"], output=output, status=count["values"])
    done = chunk.rows.filter(pc.equal(chunk.rows["status"], "done"))
    record(BYTES, pc.sum(done["size"]).as_py() or 0, output=output)
    if len(done):
        for stage, seconds in chunk.spent.items():
            record(STAGE, seconds / len(done), output=output, stage=stage)


def record_end(code: int, output: str) -> None:
    """How a segmentation run ends."""
    record(RUNS, 1, output=output, code=str(code))
    if code == 0:
        record(SUCCESS, time.time(), output=output)


def record_steps(images: int, loss: float, run: str) -> None:
    """Some training steps: `images` since the last call."""
    record(TRAINED, images, run=run)
    record(LOSS, loss, run=run)


def record_epoch(entry: Entry, run: str) -> None:
    """A finished epoch."""
    named = {"images_per_second": SPEED, "epoch": EPOCH, "val_loss": VALIDATION_LOSS}
    named |= {"val_pixel_accuracy": ACCURACY, "val_miou": MIOU}
    for name, measure in named.items():
        record(measure, entry[name], run=run)


@contextmanager
def running(measure: Measure, **tags: str) -> Iterator[None]:
    """Sets a gauge to 1 within the block, again and again: Ray exports one for 10 to 20 seconds after it was set."""
    over = threading.Event()

    def tell() -> None:
        while True:
            record(measure, 1, **tags)
            if over.wait(REFRESH_SECONDS):
                return

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
