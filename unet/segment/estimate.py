"""What a run will ask of S3, and what S3 charges for that.

The terms follow what a run does, step by step; tests/segment/test_dry_run.py compares them with the requests of a run.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from unet.segment.compaction import range_rows
from unet.segment.lease import RENEWALS
from unet.segment.recorder import PART_ROWS, PART_SECONDS, PART_SHARE
from unet.segment.settings import SegmentSettings
from unet.storage.s3 import PART_BYTES

PRICES = {"LIST": 0.005, "PUT": 0.005, "GET": 0.0004, "HEAD": 0.0004}
"""Dollars of 1,000 requests."""

PRICES_OF = "list prices of S3 Standard in us-east-1, 2025"

PAGE_KEYS = 1000
"""Keys of a page of a listing."""

REPORT_BYTES = 100
"""Of a row of report.parquet, about."""

FIXED = {"LIST": 5, "PUT": 13, "GET": 5, "HEAD": 3}
"""Of the output, whatever there is to do: .writable, the lease and its probes, the ledger, the files of the run."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run finds to do."""

    names: int
    """Names that are listed, those that are not looked at too."""
    asked: int
    """Objects of a manifest that does not know their sizes and etags."""
    images: int
    """To be segmented."""
    files: int
    """To be written for them."""
    ranges: int
    recorded: int
    """Ranges of the ledger, and rows in them."""
    recent: int
    """Other parts."""


def requests_of(settings: SegmentSettings, work: Work, seconds: float) -> Mapping[str, int]:
    """Return how many requests of each kind a run of so many seconds makes. Requests to delete are free."""
    found: Counter[str] = Counter()
    if settings.model.startswith("s3://"):
        found.update(LIST=1, GET=2)
    if settings.input.startswith("s3://"):
        pages = math.ceil(work.names / PAGE_KEYS) if settings.manifest is None else 0
        found.update(LIST=1 + max(pages, settings.manifest is None), GET=work.images, HEAD=work.asked)
    if settings.output.startswith("s3://"):
        found.update(FIXED)
        found.update(_ledger_requests(work, seconds, with_objects=settings.objects is not None))
        renewals = int(seconds * RENEWALS / settings.lease)
        found.update(PUT=renewals + work.files, GET=renewals, HEAD=renewals)
        found.update(PUT=2 * settings.force + math.floor(work.names * REPORT_BYTES / PART_BYTES), GET=settings.force)
        found.update(LIST=math.ceil(work.recorded / PAGE_KEYS) if settings.verify else 0)
    return found


def dollars(requests: Mapping[str, int]) -> float:
    """Return what these requests cost."""
    return sum(count * PRICES[kind] / 1000 for kind, count in requests.items())


def ledger_parts(seconds: float) -> float:
    """Return how many ledger parts a run of so many seconds writes: see PART_SECONDS in recorder.py."""
    least, most = PART_SECONDS
    first, last = least / PART_SHARE, most / PART_SHARE
    middle = math.log(min(max(seconds, first), last) / first) / PART_SHARE
    return min(seconds, first) / least + middle + max(0.0, seconds - last) / most


def _ledger_requests(work: Work, seconds: float, *, with_objects: bool) -> Mapping[str, int]:
    """Return the requests for the ledger: it is looked up, parts are written, and merged into ranges at the end.
    `with_objects`: each part has one of objects beside it, these are merged, and listed before and after."""
    found = Counter(GET=work.ranges + 4) if work.ranges else Counter(LIST=1)  # the index thrice, the lease once more
    found.update(LIST=2 * with_objects)
    if work.recent:  # which an interrupted run has left
        found.update(GET=work.recent + work.ranges + 1, PUT=work.ranges + 1, LIST=1)
    if work.images:
        parts = max(1, min(work.images, round(max(ledger_parts(seconds), work.images / PART_ROWS))))
        rows = work.recorded + work.images
        changed = min(max(work.ranges, math.ceil(rows / range_rows(rows))), work.images)
        found.update(GET=parts + min(changed, work.ranges) + 1, PUT=parts + changed + 1, LIST=1)
        if with_objects:
            found.update(GET=parts * (parts > 1), PUT=parts + (parts > 1))
    return found
