"""Compaction of the ledger: merges recent parts into the ranges, so that one row a key is left.

Only ranges that recent rows fall into are written anew: its cost follows what has changed. New parts are written first,
then the index that makes them count in place of the old ones, which are deleted last: a kill at any moment leaves the
ledger as it was before, or as it is after.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from unet.segment.ledger import COLUMNS, Contents, Ledger, LedgerCursor, Range, merge_sorted
from unet.storage.faults import Denied
from unet.storage.objects import Guard, no_guard

RANGE_ROWS = 250_000
"""Rows of a range: it has half as many to twice as many, where there are so many."""


def compact(ledger: Ledger, fence: int, guard: Guard = no_guard) -> None:
    """Leave one row of each key, and none `removed`. `guard` is called before each write.

    Raises:
        StorageError: nothing is lost; the next compaction does it.
    """
    contents = ledger.contents()
    if contents.recent:
        _merge(ledger, contents, fence, guard)
        contents = ledger.contents()
    guard()
    with suppress(Denied):  # the index says that they count no more
        ledger.store.delete(contents.replaced)


def _merge(ledger: Ledger, contents: Contents, fence: int, guard: Guard) -> None:
    """Write the ranges that recent rows fall into anew, and an index of all."""
    recent = LedgerCursor(ledger.recent_rows(contents.recent))
    ranges: list[Range] = []
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
        for table in _cut(merge_sorted(streams)):
            ends_of = table["key"][0].as_py(), table["key"][-1].as_py()
            ranges.append(Range(ledger.write(table, fence, guard), *ends_of, len(table)))
    kept = {item.name for item in ranges}
    replaced = contents.recent + [item.name for item in contents.ranges if item.name not in kept] + contents.replaced
    ledger.write_index(ranges, replaced, fence, guard)


def _cut(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows that are not `removed`, in tables of about RANGE_ROWS."""
    waiting = COLUMNS.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table.filter(pc.not_equal(table["status"], "removed"))])
        while len(waiting) >= 2 * RANGE_ROWS:
            yield waiting.slice(0, RANGE_ROWS)
            waiting = waiting.slice(RANGE_ROWS)
    half = len(waiting) if len(waiting) <= RANGE_ROWS else len(waiting) // 2
    for part in (waiting.slice(0, half), waiting.slice(half)):
        if len(part):
            yield part
