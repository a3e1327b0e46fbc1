"""The ledger: what has been segmented, from which bytes, by which model. Parquet files ("parts") in one folder.

A part is sorted by key and never changed. Of the rows of one key, the one with the highest fence counts, then the
latest `time`. Most rows lie in *ranges*, parts whose spans of keys do not overlap. An *index* (JSON) names them, and
the parts that they have replaced, which count no more, whether they could be deleted or not. All other parts are
*recent*: runs append them, and compaction.py merges them into the ranges.

Keys are looked up by merging two sorted streams, in constant memory. Recorded keys are valid Unicode, which sorts as
its UTF-8 does.
"""

import json
import re
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unet.data.prefetch import prefetch
from unet.segment.ledger_part import (
    COLUMNS,
    FORMAT,
    GROUP_ROWS,
    NewerFormatError,
    read_rows,
    spilled,
    with_all_columns,
    write_rows,
)
from unet.settings import RequestError
from unet.storage.faults import StorageError, Vanished
from unet.storage.local import translate_errors
from unet.storage.objects import Guard, no_guard
from unet.storage.s3 import RETRY_SECONDS
from unet.storage.store import open_store

RUN_ROWS, FAN_IN = 8192, 32
"""Rows of recent parts that are sorted at a time, in memory, and sorted runs that are merged at a time."""

_PART_NAME = re.compile(r"(\d{12,})-[0-9a-f]{32}\.parquet")
_INDEX_NAME = re.compile(r"_?(\d{12,})-[0-9a-f]{32}\.index\.json")
"""With an underscore, so that what reads the folder as a table takes no notice of it."""
CONCURRENT_READS = 4


@dataclass(frozen=True)
class Range:
    """A part that no other range overlaps, and its first and last key."""

    name: str
    first: str
    last: str
    rows: int


@dataclass(frozen=True)
class Contents:
    """The parts that count at some moment."""

    ranges: list[Range]
    """Sorted."""
    recent: list[str]
    replaced: list[str]
    """Parts and indexes that count no more and are still there."""


class Ledger:
    """The parts in the folder `uri`; other files in it are ignored.

    `classes`: names of those whose shares are recorded, by their place in `shares`; those that parts have besides come
    behind them as they are read. `profile`, `retry_seconds`: as for `open_store`.

    All methods that read raise RequestError if a part is damaged or was written by a newer version.
    """

    def __init__(
        self, uri: str, *, classes: Sequence[str] = (), profile: str | None = None, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self.uri, self.classes, self._lock = uri, list(classes), threading.Lock()
        self.store = open_store(uri, profile=profile, retry_seconds=retry_seconds)

    def next_fence(self) -> int:
        """Return one more than the highest fence of all parts; 1 if there are none."""
        names = (_PART_NAME.fullmatch(name) or _INDEX_NAME.fullmatch(name) for name in self._names())
        return 1 + max((int(match[1]) for match in names if match), default=0)

    def append(self, rows: pa.Table, fence: int, guard: Guard = no_guard) -> None:
        """Write one part. `rows` have columns of COLUMNS; those left out are null, `fence` this one, `time` now.
        `guard` is called before each attempt to write, as for all that writes here."""
        table = with_all_columns(rows, fence=fence, time=time.time())
        sink = pa.BufferOutputStream()
        write_rows(iter([latest_rows(table)]), sink, tuple(self.classes))
        self.store.put(_part_name(fence), sink.getvalue().to_pybytes(), guard=guard)

    def contents(self) -> Contents:
        """Return what is there now."""
        names = self._names()
        indexes = sorted((name for name in names if _INDEX_NAME.fullmatch(name)), key=lambda name: name.lstrip("_"))
        read = self._read_index(indexes[-1]) if indexes else {"ranges": [], "replaced": []}
        ranges = [Range(**given) for given in read["ranges"] if given["name"] in names]
        parts = {name for name in names if _PART_NAME.fullmatch(name)} - {item.name for item in ranges}
        # A part with an older fence than the index was written late, by a run that another had taken over from.
        late = {name for name in parts if indexes and name[:12] < indexes[-1].lstrip("_")[:12]}
        replaced = names & set(read["replaced"]) | set(indexes[:-1]) | late
        recent = parts - replaced
        return Contents(ranges, sorted(recent), sorted(replaced))

    def rows(self, first: str = "", before: str | None = None, contents: Contents | None = None) -> Iterator[pa.Table]:
        """Yield the rows that count, each key once, in order of key, without those `removed`.

        `first`, `before`: bounds of the keys that are wanted; others may come too. `contents`: of the ledger, if known.
        """
        contents = contents or self.contents()
        ranges = [item for item in contents.ranges if item.last >= first and (before is None or item.first < before)]
        streams = [chain.from_iterable(map(self.read_range, ranges)), self.recent_rows(contents.recent)]
        try:
            for table in merge_sorted(streams):
                yield table.filter(pc.not_equal(table["status"], "removed"))
        except Vanished:
            raise StorageError(self.uri, "was compacted by another run while it was read; run it again") from None

    def read_range(self, item: Range) -> Iterator[pa.Table]:
        """Yield the rows of a range."""
        return self._tables(item.name, GROUP_ROWS)

    def recent_rows(self, names: Sequence[str], objects: set[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of unsorted or overlapping parts, each key once, in order of key. `objects`: gets the parts of
        objects that they name, all before the first row.

        Where they are more than RUN_ROWS, sorted runs of them go to temporary files and are merged from there.
        """
        with tempfile.TemporaryDirectory(prefix="unet-ledger-") as folder:
            levels, numbers = [list[Iterator[pa.Table]]()], count()

            def spill(rows: Iterator[pa.Table], level: int = 0) -> None:
                """Write a sorted run; where there are FAN_IN of a level, merge them to one of the next."""
                levels[level].append(spilled(rows, Path(folder, f"{next(numbers)}")))
                if len(levels[level]) == FAN_IN:
                    full, levels[level] = levels[level], []
                    levels.extend([[]] * (level + 2 - len(levels)))
                    spill(merge_sorted(full), level + 1)

            waiting = COLUMNS.empty_table()
            for table in self._read_all(names):
                if objects is not None:
                    objects.update(table["objects"].drop_null().unique().to_pylist())
                waiting = pa.concat_tables([waiting, table])
                if len(waiting) >= RUN_ROWS:
                    spill(iter([latest_rows(waiting)]))
                    waiting = COLUMNS.empty_table()
            yield from merge_sorted([*chain.from_iterable(levels), iter([latest_rows(waiting)])])

    def write_range(self, tables: Iterator[pa.Table], fence: int) -> Range:
        """Write rows that are sorted by key as one part, of any size; return what the index says of it."""
        first, last, rows = "", "", 0

        def noted() -> Iterator[pa.Table]:
            nonlocal first, last, rows
            for table in tables:
                first, last = first if rows else table["key"][0].as_py(), table["key"][-1].as_py()
                rows += len(table)
                yield table

        with tempfile.TemporaryDirectory(prefix="unet-ledger-") as folder:
            path, name = Path(folder, "part"), _part_name(fence)
            with translate_errors(str(path)):
                write_rows(noted(), str(path), tuple(self.classes))
            self.store.put_file(name, path)
        return Range(name, first, last, rows)

    def write_index(self, ranges: Sequence[Range], replaced: Sequence[str], fence: int, guard: Guard) -> None:
        """Make `ranges` those that count, in one step."""
        name = f"_{fence:012d}-{time.time_ns():016x}{uuid4().hex[:16]}.index.json"  # one run may write several
        content = {"format": FORMAT, "ranges": [asdict(item) for item in ranges], "replaced": list(replaced)}
        self.store.put(name, json.dumps(content).encode(), guard=guard)

    def _names(self) -> set[str]:
        return {item.key for page in self.store.list() for item in page}

    def _read_all(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the tables of parts, of any format."""
        return prefetch(self._read, names, weight=lambda _: 1, budget=CONCURRENT_READS, threads=CONCURRENT_READS)

    def _read(self, name: str) -> pa.Table:
        return pa.concat_tables([COLUMNS.empty_table(), *self._tables(name, RUN_ROWS)])

    def _read_index(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self.store.get(name))
            if content["format"] <= FORMAT:
                return dict(content)
        except (ValueError, KeyError, TypeError):
            raise RequestError(f"{self.uri}/{name}: is damaged; delete it, the parts beside it say the same") from None
        raise self._newer(name)

    def _tables(self, name: str, size: int) -> Iterator[pa.Table]:
        """Yield the rows of a part of any format, up to `size` at a time."""
        body = self.store.get(name)
        try:
            yield from read_rows(body, size, self._places)
        except NewerFormatError:
            raise self._newer(name) from None
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"{self.uri}/{name}: is damaged; delete it, and what it records is segmented again"
            ) from error

    def _places(self, names: Sequence[str]) -> list[int]:
        """Return the places of classes in `shares`, new ones for those that are not known yet."""
        with self._lock:
            self.classes += [name for name in names if name not in self.classes]
            return list(map(self.classes.index, names))

    def _newer(self, name: str) -> RequestError:
        return RequestError(f"{self.uri}/{name}: was written by a newer version; update this one")


class LedgerCursor:
    """Takes rows from a stream that is sorted by key, once each."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._head = COLUMNS.empty_table()

    def before(self, key: str | None) -> Iterator[pa.Table]:
        """Yield the rows not taken yet whose keys come before `key`; None: all."""
        while True:
            taken, self._head = _split(self._head, key)
            if len(taken):
                yield taken
            if len(self._head) or (following := next(self._tables, None)) is None:
                return
            self._head = following

    def up_to(self, key: str) -> pa.Table:
        """Return the rows not taken yet with keys up to `key`."""
        return pa.concat_tables([COLUMNS.empty_table(), *self.before(key + "\0")])  # the string that comes next


def merge_sorted(streams: Iterable[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Yield the rows of streams that are sorted by key: in order of key, of each key the row that counts."""
    heads = [(table, stream) for stream in streams if (table := _next_table(stream)) is not None]
    while heads:
        bound = min(table["key"][-1].as_py() for table, _ in heads) + "\0"
        parts = [(*_split(table, bound), stream) for table, stream in heads]
        taken = [part for part, _, _ in parts if len(part)]
        yield taken[0] if len(taken) == 1 else latest_rows(pa.concat_tables(taken))
        heads = [
            (head, stream)
            for _, rest, stream in parts
            if (head := rest if len(rest) else _next_table(stream)) is not None
        ]


def latest_rows(table: pa.Table) -> pa.Table:
    """Return the rows that count, sorted by key."""
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in ("key", "fence", "time")])
    keys = table["key"].take(order).combine_chunks()
    last = np.ones(len(table), bool)
    last[:-1] = pc.not_equal(keys.slice(1), keys.slice(0, max(0, len(keys) - 1))).to_numpy(zero_copy_only=False)
    return table.take(order.filter(pa.array(last)))


def _next_table(stream: Iterator[pa.Table]) -> pa.Table | None:
    return next((table for table in stream if len(table)), None)


def _split(table: pa.Table, key: str | None) -> tuple[pa.Table, pa.Table]:
    """Return the rows with keys before `key`, and the others."""
    keys, count = table["key"], len(table)
    if key is not None and count and keys[-1].as_py() >= key:
        count = bisect_left(range(count), key, key=lambda place: keys[place].as_py())
    return table.slice(0, count), table.slice(count)


def _part_name(fence: int) -> str:
    return f"{fence:012d}-{uuid4().hex}.parquet"
