"""A segmentation page of a run that met with everything."""

from typing import Any

from unet.data.image import encode_image, overlay, resize_image, resize_mask
from unet.report.segmentation import Thumbnail, segmentation_report
from unet.sample.scene import draw_scene
from unet.sample.things import LABELS

STATUSES = {"done": 1204, "unchanged": 31, "failed": 3, "failed_before": 2, "skipped": 1, "changed": 0, "vanished": 1}


def thumbnail(key: str, seed: int = 0, size: tuple[int, int] = (24, 32)) -> Thumbnail:
    image, mask = draw_scene(seed)
    shown = overlay(resize_image(image, size), resize_mask(mask, size), LABELS)
    return key, encode_image(shown, "JPEG")


SUMMARY: dict[str, Any] = {
    "run": "a run",
    "input": "s3://bucket/images",
    "output": "s3://bucket/masks",
    "model": "model",
    "counts": STATUSES,
    "images_per_second": 12.34,
    "listed": 1242,
    "not_matched": 0,
    "not_looked_at": {},
    "orphaned": 0,
    "removed": 0,
    "bytes": 10**9,
    "seconds": 97.5,
}


def report(**changes: Any) -> bytes:
    """The page; `changes` are of SUMMARY or of what else it is made from."""
    given: dict[str, Any] = {
        "labels": LABELS,
        "class_pixels": [*range(0, 1000, 100), 0],
        "throughput": [(0.0, 0), (30.0, 200), (60.0, 700), (97.5, 1204)],
        "thumbnails": [thumbnail("a/b.jpg"), thumbnail("c.png", 2, (32, 9))],
        "failures": [("bad.jpg", "failed", "is empty (0 bytes)")] * 4,
    }
    summary = {name: changes.pop(name, value) for name, value in SUMMARY.items()}
    drift = changes.get("drift")
    summary["drift"] = None if drift is None else drift.to_json()
    return segmentation_report(summary, **given | changes)
