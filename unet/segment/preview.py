"""A look before a new model: what it would change of the recorded masks, on a sample of their images.

The ledger is read, no lease is taken, and nothing is written but OUTPUT/_segment/previews/ID/. Workers are those of a
run, with a comparer in the place of the writer.
"""

import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import yaml

from unet.model.artifact import Model
from unet.model.predictor import GPU_BATCH_SIZE
from unet.report.preview import preview_report
from unet.runtime.background import repeat
from unet.runtime.memory import retain_freed_memory
from unet.runtime.pool import TaskQueue, Worker, WorkerPool, connect_workers
from unet.runtime.session import check_shared
from unet.runtime.stop import shutdown_hook, time_limit
from unet.segment.comparer import SHOWN, Classes, Compared, Comparer, Comparison, Recorded
from unet.segment.item import Item, Outcome
from unet.segment.ledger_part import columns
from unet.segment.model_record import recorded_labels
from unet.segment.preview_sample import Sample, Settled, draw_sample
from unet.segment.run_spec import RunSpec
from unet.segment.segmenter import Segmenter
from unet.segment.verdict import CRASHED, FaultCounter, TooManyLost, check_lost
from unet.settings import ExitCode, to_mapping
from unet.storage import store
from unet.storage.objects import join_uri

SECONDS_PER_LINE = 5.0

ROW_SCHEMA = pa.schema(
    [
        *columns("key", "etag", "size", "status", "error"),
        *((name, pa.int64()) for name in ("pixels", "changed")),
        *((name, pa.float64()) for name in ("share", "confidence_before", "confidence", "unsure_before", "unsure")),
        *columns("seconds"),
    ]
)
"""One row for each image of the sample, and for each that was passed over."""


class PreviewWorker(Worker):
    """Segments objects as a worker of a run does, and compares where that one writes."""

    def __init__(self, spec: RunSpec, model: Model, classes: Classes) -> None:
        super().__init__()
        retain_freed_memory()
        device = "cuda" if spec.settings.gpu else "cpu"
        self._segmenter = Segmenter(spec, model, device=device, writer=Comparer(spec, classes))

    def submit(self, task: Item) -> "Future[Outcome]":
        return self._segmenter.submit(task)


def preview(model: Model, spec: RunSpec) -> int:
    """Run the preview; return its exit code.

    Raises:
        RequestError: there is nothing to compare with, before a worker starts; or all objects meet a fault.
        StorageError: storage does not answer.
    """
    settings, began = spec.settings, time.monotonic()
    labels = recorded_labels(spec, model)
    sample = draw_sample(spec, labels)
    classes = Classes.joined(model.labels, {item.fingerprint: labels[item.fingerprint] for item in sample.items})
    folder = join_uri(settings.output, spec.preview_folder)
    store.check_writable(folder, "--output", settings.output_profile)
    print(f"comparing {len(sample.items):,} of {sample.recorded:,} recorded images", flush=True)
    compared, rate = _compare_all(model, spec, classes, sample.items)
    settled = sorted([*sample.passed_over, *compared], key=lambda pair: pair[0].key)
    summary = _summary(spec, model, classes, sample, settled) | {
        "seconds": round(time.monotonic() - began, 3),
        "images_per_second": rate,
        "hours_for_all": sample.recorded / rate / 3600,
    }
    _write(spec, classes, summary, settled)
    changed = "no pixel was compared" if summary["share"] is None else f"{summary['share']:.2%} of the pixels change"
    print(f"{changed} in {summary['counts'].get('done', 0):,} images\npreview: {folder}index.html")
    try:
        check_lost(settings, Counter(outcome.status for _, outcome in compared), ended=True)
    except TooManyLost as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.TOO_MANY_FAILED
    return 0


def _compare_all(
    model: Model, spec: RunSpec, classes: Classes, items: Sequence[Recorded]
) -> tuple[list[Settled], float]:
    """Have workers compare; return what became of each object, and images per second."""
    settings = spec.settings
    workers = connect_workers(settings)
    check_shared({"--input": settings.input, "--output": settings.output}, {})
    queue = TaskQueue(len(items))
    queue.put(items)
    queue.close()
    held = 2 * (settings.batch_size or (GPU_BATCH_SIZE if settings.gpu else 1))
    pool = WorkerPool(PreviewWorker, (spec, ray.put(model), classes), workers, gpu=settings.gpu, least_held=held)
    settled: list[Settled] = []
    faults, rate = FaultCounter(spec), Rate()
    with (
        shutdown_hook(pool.stop),
        time_limit(settings.time_limit, "--time-limit"),
        repeat(lambda: print(f"compared {len(settled):,} of {len(items):,}", flush=True), SECONDS_PER_LINE),
        closing(pool.process(queue)) as results,
    ):
        for replies in results:
            outcomes = [(item, result or Outcome("failed", CRASHED, permanent=True)) for item, result in replies]
            settled += outcomes
            rate.add(len(outcomes))
            faults.add(outcomes)
    faults.check(len(settled))
    return settled, rate.per_second


class Rate:
    """Images per second, from the first reply on: what workers take to start is not in it, unless there is no other."""

    def __init__(self) -> None:
        self._replies = [(time.monotonic(), 0)]

    def add(self, images: int) -> None:
        """Note that so many more are done."""
        if images:
            self._replies.append((time.monotonic(), self._replies[-1][1] + images))

    @property
    def per_second(self) -> float:
        """Images per second."""
        (since, before), (now, done) = self._replies[min(1, len(self._replies) - 2)], self._replies[-1]
        return (done - before) / max(1e-9, now - since)


def _summary(
    spec: RunSpec, model: Model, classes: Classes, sample: Sample, settled: Sequence[Settled]
) -> dict[str, Any]:
    """Return what summary.json holds, without the timing."""
    compared = [(item, found) for item, outcome in settled if (found := comparison_of(outcome)) is not None]
    matrix = np.zeros(len(classes.labels.classes) ** 2, np.int64)
    for _, found in compared:
        matrix[found.cells] += found.counts
    pixels, changed = (sum(getattr(found, name) for _, found in compared) for name in ("pixels", "changed"))
    before = {name for labels in classes.recorded.values() for name in labels.names}
    both = [pair for pair in compared if pair[0].confidence is not None] or compared
    return {
        "format": 1,
        "preview": spec.run,
        "input": spec.settings.input,
        "output": spec.settings.output,
        "model": spec.settings.model,
        "fingerprint": spec.fingerprint,
        "recorded": sample.recorded,
        "counts": dict(sorted(Counter(outcome.status for _, outcome in settled).items())),
        "pixels": pixels,
        "changed": changed,
        "share": changed / pixels if pixels else None,
        "confidence_before": _mean(both, lambda item, _: item.confidence),
        "confidence": _mean(both, lambda _, found: found.confidence),
        "unsure_before": _mean(both, lambda item, _: item.unsure),
        "unsure": _mean(both, lambda _, found: found.unsure),
        "classes": list(classes.labels.names),
        "only_before": sorted(before - set(model.labels.names)),
        "only_after": [name for name in model.labels.names if name not in before],
        "matrix": matrix.reshape(len(classes.labels.classes), -1).tolist(),
    }


def comparison_of(outcome: Outcome) -> Comparison | None:
    """Return what was counted of an image, if it was compared."""
    return outcome.comparison if isinstance(outcome, Compared) else None


def _mean(
    compared: Sequence[tuple[Recorded, Comparison]], value: Callable[[Recorded, Comparison], float | None]
) -> float | None:
    """Return the mean over all pixels of a mean by image; None where an image has none."""
    weighted = [(value(*pair), pair[1].pixels) for pair in compared if pair[1].pixels]
    if not weighted or any(number is None for number, _ in weighted):
        return None
    return sum((number or 0.0) * pixels for number, pixels in weighted) / sum(pixels for _, pixels in weighted)


def _write(spec: RunSpec, classes: Classes, summary: dict[str, Any], settled: Sequence[Settled]) -> None:
    """Write what a preview leaves, summary.json last."""
    rows = pa.Table.from_pylist([_row(*pair) for pair in settled], ROW_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    shown = [found for _, outcome in settled if (found := comparison_of(outcome)) is not None and found.panels]
    shown = sorted(shown, key=lambda found: -found.changed / found.pixels)[:SHOWN]
    page = preview_report(
        summary,
        labels=classes.labels,
        rows=rows.to_pylist(),
        panels=[(found.panels, found.changed / found.pixels) for found in shown if found.panels is not None],
    )
    files = {
        "settings.yaml": yaml.safe_dump(to_mapping(spec.settings), sort_keys=False).encode(),
        "preview.parquet": buffer.getvalue(),
        "index.html": page,
        "summary.json": json.dumps(summary, indent=1).encode(),
    }
    for name, data in files.items():
        spec.output_store.put(f"{spec.preview_folder}{name}", data)


def _row(item: Recorded, outcome: Outcome) -> dict[str, Any]:
    row = {"key": item.key, "etag": item.etag, "size": item.size, "status": outcome.status, "error": outcome.error}
    found = comparison_of(outcome)
    if found is None:
        return row
    return row | {
        "pixels": found.pixels,
        "changed": found.changed,
        "share": found.changed / found.pixels if found.pixels else None,
        "confidence_before": item.confidence,
        "confidence": found.confidence,
        "unsure_before": item.unsure,
        "unsure": found.unsure,
        "seconds": outcome.seconds,
    }
