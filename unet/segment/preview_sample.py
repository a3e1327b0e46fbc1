"""Which recorded images a preview compares: those whose keys have the lowest hashes, the same ones each time.

An image that is not as it was recorded any more is passed over, and the next one takes its place.
"""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unet.segment.comparer import Recorded
from unet.segment.item import Outcome
from unet.segment.listing import selection
from unet.segment.run_spec import RunSpec, hash64
from unet.settings import RequestError
from unet.storage.faults import BadCredentials, Denied, Vanished
from unet.storage.store import Store

CANDIDATES = 10
"""Rows of the ledger that are drawn for each image of the sample: so many may have been replaced or deleted."""

CONCURRENT_REQUESTS = 16
"""Requests at a time that ask whether an image is as recorded."""

Settled = tuple[Recorded, Outcome]


@dataclass
class Sample:
    """What is compared."""

    recorded: int
    """Masks that the ledger records of this input."""
    items: list[Recorded] = field(default_factory=list)
    passed_over: list[Settled] = field(default_factory=list)


def draw_sample(spec: RunSpec, labels: Container[str]) -> Sample:
    """Return the sample. `labels`: fingerprints whose classes are known.

    Raises:
        RequestError: nothing is recorded, or nothing is as it was recorded.
    """
    settings, most = spec.settings, spec.settings.preview or 0
    recorded, rows = _lowest_ranks(spec, CANDIDATES * most)
    sample = Sample(recorded)
    if not recorded:
        raise RequestError(
            f"--preview: --output {settings.output} records no mask of --input {settings.input}; run the job without "
            "--preview first, with the model in use"
        )
    candidates, why_not = map(_recorded, rows.to_pylist()), partial(_why_not, labels, spec.input_store)
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as threads:
        while chunk := list(islice(candidates, most - len(sample.items))):
            for item, outcome in zip(chunk, threads.map(why_not, chunk), strict=True):
                if outcome is None:
                    sample.items.append(item)
                else:
                    sample.passed_over.append((item, outcome))
    if not sample.items:
        counts = Counter(outcome.error for _, outcome in sample.passed_over)
        (reason, _), *_ = counts.most_common(1)
        raise RequestError(
            f"--preview: of {len(sample.passed_over):,} images that are recorded none is compared: {reason}"
        )
    return sample


def _why_not(labels: Container[str], images: Store, item: Recorded) -> Outcome | None:
    """Return why an image is passed over; None if it is compared."""
    if item.fingerprint not in labels:
        return Outcome("unknown", "its classes are not recorded; run the job once with the model that made its mask")
    try:
        found = images.head(item.key)
    except Vanished:
        return Outcome("vanished", "was deleted after it was recorded")
    except BadCredentials:
        raise
    except Denied:
        return None  # a worker tries it as well, and its row says so
    as_recorded = (found.etag, found.size) == (item.etag, item.size)
    return None if as_recorded else Outcome("changed", "was replaced after it was recorded")


def _lowest_ranks(spec: RunSpec, most: int) -> tuple[int, pa.Table]:
    """Return how many masks are recorded of this input, and the rows of those whose keys have the lowest hashes."""
    settings = spec.settings
    selects = selection(settings.include, settings.exclude)
    recorded, bound, drawn = 0, 1 << 64, list[pa.Table]()
    for table in spec.ledger.rows():
        ours = pc.fill_null(pc.equal(table["input"], spec.input), True)  # format 1 does not know it
        rows = table.filter(pc.and_(ours, pc.equal(table["status"], "done")))
        if settings.include or settings.exclude:
            rows = rows.filter(pa.array([selects(key) is not False for key in rows["key"].to_pylist()], pa.bool_()))
        recorded += len(rows)
        ranks = np.fromiter(map(hash64, rows["key"].to_pylist()), np.uint64, len(rows))
        low = np.flatnonzero(ranks < bound)
        drawn.append(rows.take(pa.array(low)).append_column("rank", pa.array(ranks[low])))
        if sum(map(len, drawn)) > 2 * most:
            drawn = [_first(drawn, most)]
            bound = drawn[0]["rank"][-1].as_py()
    return recorded, _first(drawn, most) if drawn else pa.table({})


def _first(tables: Sequence[pa.Table], most: int) -> pa.Table:
    table = pa.concat_tables(tables)
    return table.take(pc.sort_indices(table, [("rank", "ascending")])[:most])


def _recorded(row: Mapping[str, Any]) -> Recorded:
    return Recorded(
        key=row["key"],
        etag=row["etag"],
        size=row["size"],
        outputs="confidence,mask",  # of the prediction; nothing is written
        mask_etag=row["mask_etag"],
        fingerprint=row["fingerprint"],
        confidence=row["confidence"],
        unsure=row["unsure"],
    )
