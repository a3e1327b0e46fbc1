"""What a run would take: which objects and why, requests, dollars and hours. Nothing is changed, Ray is not started.

The speed is that of earlier runs; where there are none, that of a few images that are tried here.
"""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

import pyarrow.compute as pc
import torch

from unet.data.image import ImageError, open_image
from unet.data.planes import read_array
from unet.model.artifact import Model
from unet.model.predictor import Predictor
from unet.segment.estimate import PRICES, PRICES_OF, Work, dollars, requests_of
from unet.segment.item import Item
from unet.segment.listing import TODO, Listing, items_of
from unet.segment.run_index import read_runs
from unet.segment.run_spec import OUTPUTS, RunSpec
from unet.settings import worker_range
from unet.storage.faults import StorageError

TRIED = 10
"""Images that are tried where no run tells the speed."""

RUNS = 5
"""Runs that tell it, at most."""


def dry_run(model: Model, spec: RunSpec) -> int:
    """Print what a run would take; return the exit code."""
    counts: Counter[str] = Counter()
    listing, first = Listing(spec), list[Item]()
    images = size = files = 0
    for rows in listing.tables():
        for row in rows.group_by(["status", "error"]).aggregate([([], "count_all")]).to_pylist():
            counts[f"{row['status']}: {row['error']}" if row["error"] else row["status"]] += row["count_all"]
        todo = rows.filter(pc.equal(rows["status"], TODO))
        images, size = images + len(todo), size + (pc.sum(todo["size"]).as_py() or 0)
        files += pc.sum(pc.count_substring_regex(todo["outputs"], "|".join(OUTPUTS))).as_py() or 0
        first += items_of(todo.slice(0, TRIED - len(first)))
    counts.update({name: number for name, number in listing.facts.items() if number and isinstance(number, int)})
    print("nothing is changed; a run would take")
    for status, number in sorted(counts.items()):
        print(f"{number:>12,}  {status.replace(TODO, 'segment')}")
    rate, told_by = _speed(model, spec, first) if images else (None, "there is nothing to segment")
    seconds = images / rate if rate else 0.0
    requests = requests_of(spec.settings, _work(spec, listing, images, files), seconds)
    hours = f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    hours = f"{hours} at {rate:,.2f} images/s" if rate else "unknown" if images else "moments"
    print(f"read      {size / 1e6:,.1f} MB of images; {files:,} files are written for them")
    print(f"time      {hours}: {told_by}")
    print(f"requests  {_describe_requests(requests)}" + (", and some for each second" if images and not rate else ""))
    return 0


def _work(spec: RunSpec, listing: Listing, images: int, files: int) -> Work:
    contents, asked = spec.ledger.contents(), 0
    if spec.manifest is not None and not spec.manifest.knows_objects():
        asked = listing.listed
    return Work(
        names=listing.listed + listing.not_matched,
        asked=asked,
        images=images,
        files=files,
        ranges=len(contents.ranges),
        recorded=sum(item.rows for item in contents.ranges),
        recent=len(contents.recent),
    )


def _describe_requests(requests: Mapping[str, int]) -> str:
    if not requests:
        return "none of S3"
    counts = ", ".join(f"{kind} {requests[kind]:,}" for kind in PRICES if requests.get(kind))
    return f"{counts}: ${dollars(requests):,.4f} by the {PRICES_OF}; machines, storage and traffic are not counted"


def _speed(model: Model, spec: RunSpec, items: Sequence[Item]) -> tuple[float | None, str]:
    """Return images per second, None if they are not known, and what tells them."""
    runs = [run for run in read_runs(spec.output_store) if run["counts"].get("done")]
    same = [run for run in runs if run["fingerprint"] == spec.fingerprint]
    if last := (same or runs)[:RUNS]:
        rate = sum(run["counts"]["done"] for run in last) / sum(run["seconds"] for run in last)
        of = "this model and settings" if same else "other models or settings"
        return rate, f"as in the last runs with {of} ({len(last)})"
    if spec.settings.gpu and not torch.cuda.is_available():
        return None, "no run has ended here yet, and there is no GPU on this machine to try"
    rate = _try(model, spec, items)
    if rate is None:
        return None, f"no run has ended here yet, and none of the first {len(items)} images could be tried"
    workers = worker_range(spec.settings.workers)[1] if spec.settings.workers else 0
    workers = workers or (1 if spec.settings.gpu else len(os.sched_getaffinity(0)))
    device = "GPU" if spec.settings.gpu else "CPU"
    return rate * workers, f"as {len(items)} images that were tried on one {device} here, times {workers} workers"


def _try(model: Model, spec: RunSpec, items: Sequence[Item]) -> float | None:
    """Return how many images per second one worker fetches and predicts; None if it can predict none of them."""
    settings, images, done = spec.settings, spec.input_store, 0
    device = "cuda" if settings.gpu else "cpu"
    predictor = Predictor(model, device=device, precision=settings.precision, tile=settings.tile, tta=settings.tta)
    threads, began = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(1)  # as a worker has
    try:
        for item in items:
            with suppress(ImageError, StorageError, MemoryError):
                picture = open_image(images.get(item.key), max_pixels=settings.max_pixels)
                predictor.predict(read_array(picture, spec.channels)[0])
                done += 1
    finally:
        torch.set_num_threads(threads)
    return done / (time.monotonic() - began) if done else None
