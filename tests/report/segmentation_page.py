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
    return Thumbnail(key=key, jpeg=encode_image(shown, "JPEG"))


def report(**changes: Any) -> bytes:
    given: dict[str, Any] = {
        "title": "a run",
        "facts": {"Input": "s3://bucket/images"},
        "counts": STATUSES,
        "images_per_second": 12.34,
        "labels": LABELS,
        "class_pixels": [*range(0, 1000, 100), 0],
        "throughput": [(0.0, 0), (30.0, 200), (60.0, 700), (97.5, 1204)],
        "thumbnails": [thumbnail("a/b.jpg"), thumbnail("c.png", 2, (32, 9))],
        "failures": [("bad.jpg", "failed", "is empty (0 bytes)")],
        "failures_total": 1,
    }
    return segmentation_report(**given | changes)
