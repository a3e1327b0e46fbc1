"""Some objects on their way through the pipeline: a table with one row for each, and what is counted beside them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

TODO = "todo"
"""Status of an object that is to be segmented. An object with any other status is settled: it is final in this run."""

ROW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("mask_etag", pa.string()),
        ("seconds", pa.float64()),
        ("permanent", pa.bool_()),
    ]
)
"""One row for each object. `error`: the reason for the status; `permanent`: a failure that the same bytes and settings
will meet again."""


@dataclass
class Chunk:
    """Some objects, and what is counted beside them."""

    rows: pa.Table
    """Columns of ROW_SCHEMA."""
    totals: Counter[str] = field(default_factory=Counter)
    """Counts of what has no row: names that do not match, masks without an image, masks removed."""
    class_pixels: npt.NDArray[np.int64] | None = None
    """Pixels of the masks made, by class index."""
    thumbnails: list[tuple[int, str, bytes]] = field(default_factory=list)
    """Candidates for the contact sheet: rank, key, JPEG."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of all its images, by stage."""


def rows_table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return a table of ROW_SCHEMA; columns left out are null."""
    nulls = [None] * len(columns["key"])
    return pa.table({name: columns.get(name, nulls) for name in ROW_SCHEMA.names}, schema=ROW_SCHEMA)
