"""The objects of an input beside their rows of the ledger: a merge of two sorted streams, in constant memory.

Where the ledger knows an input, it says where its keys lie, and ranges of keys are listed side by side: their rows come
in order within a range, and in no order between ranges. An input that is new is listed from one end to the other, and
there a server may have any order.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Full, Queue

import pyarrow as pa
import pyarrow.compute as pc

from unet.runtime.background import read_ahead
from unet.segment.ledger import Contents, Ledger, LedgerCursor
from unet.segment.ledger_part import COLUMNS
from unet.storage.faults import StorageError, Unreachable
from unet.storage.objects import LISTED, NOT_UNICODE, split_uri
from unet.storage.store import Store

TOGETHER, TOGETHER_IN_RANGE = (2_000, 0.2), (8_000, 2.0)
"""Keys that are looked up together, at most, and seconds for which the first of them waits for more: of an input that
is listed from one end to the other, where workers may wait for it, and of a range."""

PAGES_A_SECOND, MAX_WORKERS = 400, 64
"""Pages that would come if only the server took time, more than are looked up, and requests at a time, at most."""

EXPRESS = ("--x-s3", "--xa-s3")
"""What the names of directory buckets, and of their access points, end with."""

WAITING = 8
"""Batches that are listed and not taken yet."""


@dataclass(frozen=True)
class Found:
    """Some objects, and the rows of the ledger around them."""

    known: pa.Table
    """Up to the last of these keys, from the last of those before; each row once."""
    page: pa.Table = field(default_factory=LISTED.empty_table)
    """Objects that are selected."""
    others: pa.Table = field(default_factory=LISTED.empty_table)
    """The others."""
    out_of_order: bool = False
    """The rows have been given already, with keys before these."""


@dataclass
class Lookup:
    """Lists objects and looks their keys up. `select`: which of a page are selected, a column of bool."""

    ledger: Ledger
    select: Callable[[pa.Table], pa.ChunkedArray]
    workers: int | None = None
    """Ranges that are listed at a time; None: as many as the latency of the server asks for."""
    _page_seconds: float = field(default=1.0, init=False)
    """How long a page took, the fastest so far."""

    def of_pages(self, pages: Iterable[pa.Table]) -> Iterator[Found]:
        """Yield what is found from one end to the other."""
        return read_ahead(self._scan(pages, self.ledger.contents()))

    def of_store(self, store: Store) -> Iterator[Found]:
        """Yield what is found in a store."""
        contents = self.ledger.contents()
        ends = [] if contents.recent else [item.last for item in contents.ranges[:-1]]
        asked = time.monotonic()
        if not ends or self.workers == 1 or not _lists_from(store, ends[len(ends) // 2]):
            return read_ahead(self._scan(store.list_tables(), contents))
        self._page_seconds = (time.monotonic() - asked) / 2  # of two pages
        spans = deque(zip(["", *ends], [*ends, None], strict=True))
        return self._side_by_side(store, contents, spans)

    def _side_by_side(self, store: Store, contents: Contents, spans: deque[tuple[str, str | None]]) -> Iterator[Found]:
        """Yield what is found in ranges of keys, each from behind its first key to its second, in threads."""
        ready: Queue[Found | BaseException | None] = Queue(WAITING)
        ended, running = threading.Event(), 0

        def put(entry: Found | BaseException | None) -> None:
            while not ended.is_set():
                with suppress(Full):
                    ready.put(entry, timeout=1)
                    break

        def work() -> None:
            try:
                while not ended.is_set() and running <= self._wanted() and (span := _pop(spans)) is not None:
                    for found in self._scan(store.list_tables(*span), contents, *span):
                        put(found)
            except BaseException as error:  # raised below
                put(error)
            put(None)

        try:
            while running or spans:
                while spans and running < self._wanted():
                    running += 1
                    threading.Thread(target=work, daemon=True).start()
                entry = ready.get()
                if isinstance(entry, BaseException):
                    raise entry
                if entry is None:
                    running -= 1
                else:
                    yield entry
        finally:
            ended.set()

    def _wanted(self) -> int:
        return self.workers or max(2, min(MAX_WORKERS, round(PAGES_A_SECOND * self._page_seconds)))

    def _scan(
        self, pages: Iterable[pa.Table], contents: Contents, after: str = "", until: str | None = None
    ) -> Iterator[Found]:
        """Yield what is found of `pages`, whose keys lie behind `after`, up to `until`."""
        begin, end = f"{after}\0" if after else "", None if until is None else f"{until}\0"
        is_range = bool(begin) or end is not None
        cursor, last = LedgerCursor(self.ledger.rows(begin, end, contents)), None
        for _ in cursor.before(begin):
            pass
        for page in self._batches(pages, TOGETHER_IN_RANGE if is_range else TOGETHER):
            chosen = self.select(page)
            selected, others = page.filter(chosen), page.filter(pc.invert(chosen))
            keys = page["key"].filter(pc.not_equal(page["storage_class"], NOT_UNICODE))
            if not len(keys):
                yield Found(COLUMNS.empty_table(), selected, others)
                continue
            least, most = pc.min_max(keys).as_py().values()
            if last is None or least > last:
                for known in cursor.before(least):
                    yield Found(known)
                last = most
                yield Found(cursor.up_to(most), selected, others)
            elif is_range:
                raise StorageError(least, "comes out of order in the listing; run it again with --list-workers 1")
            else:  # a server that does not keep the order: these keys are looked up by themselves
                known = LedgerCursor(self.ledger.rows(least, f"{most}\0")).up_to(most)
                yield Found(known.filter(pc.is_in(known["key"], keys)), selected, others, out_of_order=True)
        for known in cursor.before(end):
            yield Found(known)

    def _batches(self, pages: Iterable[pa.Table], together: tuple[int, float]) -> Iterator[pa.Table]:
        """Yield pages that follow each other in order as one."""
        most, seconds = together
        waiting, since = list[pa.Table](), time.monotonic()
        asked = since
        for page in pages:
            now = time.monotonic()
            self._page_seconds = min(self._page_seconds, now - asked)
            if waiting and page["key"][0].as_py() <= waiting[-1]["key"][-1].as_py():
                yield pa.concat_tables(waiting).combine_chunks()
                waiting = []
            since = since if waiting else asked
            waiting.append(page)
            if sum(map(len, waiting)) >= most or now - since > seconds:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting = []
            asked = time.monotonic()
        if waiting:
            yield pa.concat_tables(waiting).combine_chunks()


def _pop(spans: deque[tuple[str, str | None]]) -> tuple[str, str | None] | None:
    with suppress(IndexError):  # another thread has taken the last one
        return spans.popleft()
    return None


def _lists_from(store: Store, key: str) -> bool:
    """Return whether the store can be listed from behind a key on, in order. A server may know no such thing or have
    no order at all, which the first page shows sooner than one from behind a key; and a directory bucket of S3 Express
    has none."""
    if store.uri.startswith("s3://") and split_uri(store.uri)[0].endswith(EXPRESS):
        return False
    try:
        pages = [[item.key for item in next(store.list(after), [])] for after in ("", key)]
    except Unreachable:
        raise
    except StorageError:
        return False
    return all(keys == sorted(keys) for keys in pages) and (not pages[1] or pages[1][0] > key)
