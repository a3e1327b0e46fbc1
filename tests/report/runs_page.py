"""A page of runs: most of them whole, some with losses, the older ones before drift was measured."""

from typing import Any

from unet.report.runs import runs_page


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """A run of night `number`."""
    counts = {"done": 1200 + 37 * number % 400, "unchanged": 5000 * number, "failed": number % 5 // 4}
    given: dict[str, Any] = {
        "run": f"202601{number % 31 + 1:02}T0200{number % 60:02}Z-{number:04x}",
        "fence": number,
        "complete": number % 7 != 3,
        "model": "s3://bucket/runs/street/model",
        "model_digest": f"{number // 10:02}" + "ab" * 31,
        "fingerprint": "0123456789abcdef",
        "counts": counts,
        "seconds": 90.0 + number,
        "images_per_second": counts["done"] / (90 + number),
        "drift": None if number < 12 else 0.02 * (number - 11),
    }
    return given | changes


def report(count: int = 24, **changes: Any) -> bytes:
    return runs_page("s3://bucket/masks", [entry(number, **changes) for number in range(count, 0, -1)])
