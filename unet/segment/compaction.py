"""Compaction of the ledger: merges recent parts into the ranges, so that one row a key is left.

Only ranges that recent rows fall into are written anew: its cost follows what has changed. New parts are written first,
then the index that makes them count in place of the old ones, which are deleted last: a kill at any moment leaves the
ledger as it was before, or as it is after.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from unet.segment.ledger import Contents, Ledger, LedgerCursor, Range, merge_sorted
from unet.segment.ledger_part import COLUMNS, spilled
from unet.storage.faults import Denied
from unet.storage.objects import Guard, no_guard

RANGE_SHARE, RANGE_ROWS = 1 / 128, (1_000, 100_000)
"""The share of all rows that a range has at most, within these bounds; it has half as many at least, where there are so
many. A run that changes a few objects writes few ranges, and a large ledger has few of them."""


def range_rows(rows: int) -> float:
    """Return how many rows a range has at most, in a ledger of so many."""
    least, most = RANGE_ROWS
    return min(most, max(least, RANGE_SHARE * rows))


Merge = Callable[[Iterable[str]], Mapping[str, str]]


def compact(ledger: Ledger, fence: int, guard: Guard = no_guard, merge: Merge = lambda _: {}) -> None:
    """Leave one row of each key, and none `removed`. `guard` is called before each write.

    `merge`: called with the parts of objects that only recent rows name; returns which of them the rows are to name in
    place of which.

    Raises:
        StorageError: nothing is lost; the next compaction does it.
    """
    contents = ledger.contents()
    if contents.recent:
        _merge(ledger, contents, fence, guard, merge)
        contents = ledger.contents()
    guard()
    with suppress(Denied):  # the index says that they count no more
        ledger.store.delete(contents.replaced)


def _recent_rows(ledger: Ledger, names: Sequence[str], merge: Merge) -> Iterator[pa.Table]:
    """Yield the recent rows, once the objects that they name are merged."""
    objects, moved = set[str](), None
    runs = {int(name.split("-")[0]) for name in names}  # all rows of these are recent ones
    for table in ledger.recent_rows(names, objects):
        if moved is None:
            moved = merge(name for name in objects if int(name.split("-")[0]) in runs)
        old, new = (pa.array(parts, pa.string()) for parts in (moved.keys(), moved.values()))
        named = pc.coalesce(new.take(pc.index_in(table["objects"], old)), table["objects"])
        yield table.set_column(COLUMNS.get_field_index("objects"), "objects", named)


def _merge(ledger: Ledger, contents: Contents, fence: int, guard: Guard, merge: Merge) -> None:
    """Write the ranges that recent rows fall into anew, and an index of all."""
    recent = LedgerCursor(_recent_rows(ledger, contents.recent, merge))
    ranges: list[Range] = []
    recorded = sum(item.rows for item in contents.ranges)
    ends = [*(item.first for item in contents.ranges[1:]), None]
    old: Sequence[Range | None] = contents.ranges or [None]
    for item, end in zip(old, ends, strict=True):
        new = recent.before(end)
        first = next(new, None)
        if item is not None and first is None:
            ranges.append(item)
            continue
        streams = [
            chain([] if first is None else [first], new),
            ledger.read_range(item) if item is not None else iter(()),
        ]
        ranges += _write(ledger, merge_sorted(streams), recorded, fence, guard)
    kept = {item.name for item in ranges}
    replaced = contents.recent + [item.name for item in contents.ranges if item.name not in kept] + contents.replaced
    ledger.write_index(ranges, replaced, fence, guard)


def _write(ledger: Ledger, tables: Iterator[pa.Table], recorded: int, fence: int, guard: Guard) -> Iterator[Range]:
    """Write the rows that are not `removed`, in parts. They go to a file first, to be counted. `recorded`: rows
    of the ledger before."""
    rows = 0

    def kept() -> Iterator[pa.Table]:
        nonlocal rows
        for table in tables:
            left = table.filter(pc.not_equal(table["status"], "removed"))
            rows += len(left)
            yield left

    with tempfile.TemporaryDirectory(prefix="unet-ledger-") as folder:
        merged = spilled(kept(), Path(folder, "merged"))
        parts = math.ceil(rows / range_rows(max(rows, recorded)))
        head = COLUMNS.empty_table()

        def take(count: int) -> Iterator[pa.Table]:
            nonlocal head
            while count and (len(head) or len(head := next(merged, head))):
                yield (taken := head.slice(0, count))
                head, count = head.slice(count), count - len(taken)

        for _ in range(parts):
            guard()
            yield ledger.write_range(take(math.ceil(rows / parts)), fence)
