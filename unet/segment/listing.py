"""What a run has to do: every object of the input, each with a verdict, in chunks that flow while the listing goes on.

A chunk's `rows` have the columns of `ROWS`. `status` is TODO, with the reason in `error`, or already the object's last
word in this run. Memory does not grow with the listing; the ledger's look-up is all that is held.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from unet.data.image import SUFFIXES
from unet.segment.ledger import CHANGED, DONE, FAILED, MODEL_CHANGED, NEW, Ledger, Record, hash64
from unet.segment.manifest import head_objects, manifest_keys
from unet.segment.settings import SegmentSettings
from unet.settings import Window
from unet.storage.listed import Listed, join
from unet.storage.store import Store, open_store

TODO = "todo"

OWN = "_segment/"
"""What keys of our own in the output begin with."""

LEASE = f"{OWN}lease"
"""Who may write to the output."""

REASONS = {
    NEW: "new",
    CHANGED: "changed",
    MODEL_CHANGED: "model or settings changed",
    DONE: "forced",
    FAILED: "retried",
}
"""Why an object is segmented, by what the ledger says of it."""

ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes whose objects cannot be read before they are restored."""

SMALLEST_CHUNK, LARGEST_CHUNK, SETTLED_CHUNK = 1, 256, 8192
"""Objects of a chunk: one at first, so that every worker has some soon, then a 32nd of all before it, so that no worker
is left with much at the end; Ray keeps some 10 kB of books for each chunk. Settled ones, which cost nothing, go in
larger ones."""

ROWS = pa.schema(
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
"""One row for each object. `permanent`: a failure that the same bytes and settings will meet again."""


@dataclass(frozen=True)
class Request:
    """What the driver has decided; the same for every process of a run."""

    settings: SegmentSettings
    fingerprint: str
    """Digest of all that changes a mask."""
    run: str
    """Name of the run's folder."""
    fence: int
    """Number of this run among those of the output; the highest has the last word on a key."""
    conditional: bool = False
    """Whether the output makes or replaces an object on condition of what is there."""
    window: Window | None = None
    """How the model sees 16-bit images."""

    @property
    def failed_fingerprint(self) -> str:
        """Digest of all that decides whether an object fails."""
        limits = self.settings.max_pixels, self.settings.max_bytes
        return f"{hash64(self.fingerprint, *limits):016x}"

    @property
    def ledger(self) -> Ledger:
        """The record of earlier runs, and of this one."""
        return Ledger(join(self.settings.output, f"{OWN}ledger"), retry_for=self.settings.retry_for)

    @property
    def source(self) -> Store:
        """Where the images are."""
        return open_store(self.settings.input, retry_for=self.settings.retry_for)

    @property
    def target(self) -> Store:
        """Where the masks go, and all else."""
        return open_store(self.settings.output, retry_for=self.settings.retry_for)


@dataclass
class Chunk:
    """Some objects on their way through the pipeline, and what is counted beside them."""

    rows: pa.Table
    totals: Counter[str] = field(default_factory=Counter)
    """Counts of what has no row: names that do not match, masks without an image, masks removed."""
    class_pixels: npt.NDArray[np.int64] | None = None
    """Pixels of the masks made, by class index."""
    sheets: list[tuple[int, str, bytes]] = field(default_factory=list)
    """Candidates for the contact sheet: rank, key, JPEG."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of all its images, by stage."""


def make_rows(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """A table of `ROWS`; columns left out are null."""
    count = len(columns["key"])
    return pa.table(
        [pa.array(columns[name], kind) if name in columns else pa.nulls(count, kind) for name, kind in _KINDS],
        schema=ROWS,
    )


_KINDS = list(zip(ROWS.names, ROWS.types, strict=True))


def mask_key(key: str) -> str:
    """Where the mask of an image lies in the output: the whole key and more, so that no two images share one."""
    return f"{key}.png"


def output_keys(key: str, outputs: Iterable[str]) -> list[str]:
    """All that is written for an image."""
    return [mask_key(key) if name == "mask" else f"{OWN}{name}/{mask_key(key)}" for name in outputs]


def chunks(request: Request, guard: Callable[[], None] = lambda: None) -> Iterator[Chunk]:
    """All objects of the input, each once, settled or to be done. `guard` is called before a mask is removed."""
    lister = _Lister(request, guard)
    waiting, settled = make_rows({"key": []}), make_rows({"key": []})
    emitted = 0
    for page in lister.pages():
        rows = lister.judge(page)
        todo = pc.equal(rows["status"], TODO)
        # Combined, since pieces add up even where they have no rows.
        waiting = pa.concat_tables([waiting, rows.filter(todo)]).combine_chunks()
        settled = pa.concat_tables([settled, rows.filter(pc.invert(todo))]).combine_chunks()
        while len(waiting) >= (size := _chunk_size(emitted)):
            yield Chunk(_first(waiting, size))
            waiting, emitted = waiting.slice(size), emitted + size
        if len(settled) >= SETTLED_CHUNK:
            yield Chunk(settled)
            settled = _first(settled, 0)
        if lister.todo_left == 0:
            break
    if len(waiting):
        yield Chunk(_first(waiting, len(waiting)))
    if len(settled):
        yield Chunk(settled)
    yield Chunk(_first(settled, 0), lister.finish())  # nothing is removed before all else is taken


def _first(rows: pa.Table, count: int) -> pa.Table:
    """Taken, not sliced: a slice travels with all that it is a slice of."""
    return rows.take(np.arange(count))


def _chunk_size(emitted: int) -> int:
    return max(SMALLEST_CHUNK, min(emitted // 32, LARGEST_CHUNK))


class _Lister:
    """Lists, and judges by the name, the listing and the ledger."""

    def __init__(self, request: Request, guard: Callable[[], None]) -> None:
        self.request, self.guard = request, guard
        self.settings = settings = request.settings
        self.source, self.target = request.source, request.target
        self.record: Record = request.ledger.load(masks=settings.verify)
        self.masks = _masks_of(self.target) if settings.verify else None
        self.totals: Counter[str] = Counter()
        self.todo_left = settings.limit if settings.limit is not None else -1
        self.include = _pattern(settings.include)
        self.exclude = _pattern(settings.exclude)
        self.outputs = settings.outputs

    def pages(self) -> Iterator[list[Listed]]:
        """Objects whose names match, in pages."""
        if self.settings.manifest is not None:
            yield from head_objects(self._named(manifest_keys(self.settings.manifest)), self.source)
            return
        for page in self.source.list():
            chosen, others = list[Listed](), list[str]()
            for item in page:
                chosen.append(item) if self._chosen(item) else others.append(item.key)
            self.totals["not_matched"] += len(others)
            self.record.see(others)  # what is not chosen is not gone
            if chosen:
                yield chosen

    def judge(self, page: list[Listed]) -> pa.Table:
        """The rows of a page, in its order."""
        settings, request = self.settings, self.request
        keys, etags = [item.key for item in page], [item.etag for item in page]
        sizes = [item.size for item in page]
        outcomes = self.record.outcomes(keys, etags, sizes, request.fingerprint, request.failed_fingerprint)
        reasons = [REASONS[code] for code in outcomes.tolist()]
        todo = (outcomes != DONE) & (outcomes != FAILED)
        if settings.force:
            todo[:] = True
        if settings.retry_failed:
            todo |= outcomes == FAILED
        if self.masks is not None:
            missing = (outcomes == DONE) & ~self.masks.hold(keys, self.record.mask_hashes(keys))
            todo |= missing
            for place in np.flatnonzero(missing):
                reasons[place] = "mask missing or altered"
        statuses, errors = [], []
        for item, code, reason, wanted in zip(page, outcomes.tolist(), reasons, todo.tolist(), strict=True):
            status, error = self._verdict(item, code, reason, wanted)
            statuses.append(status)
            errors.append(error)
        keys = [key if _is_unicode(key) else ascii(key)[1:-1] for key in keys]
        return make_rows({"key": keys, "etag": etags, "size": sizes, "status": statuses, "error": errors})

    def finish(self) -> Counter[str]:
        """What is left to say after a whole listing: masks whose image is gone are counted, or removed."""
        settings = self.settings
        whole = settings.manifest is None and not settings.include and not settings.exclude and self.todo_left != 0
        if whole:
            gone = self.record.unseen()
            if settings.prune and not settings.dry_run:
                self._remove(gone)
            else:
                self.totals["orphaned"] += len(gone)
        return self.totals

    def _remove(self, gone: npt.NDArray[np.uint64]) -> None:
        ledger = self.request.ledger
        for keys in ledger.keys(gone):
            self.guard()
            self.target.delete(key for image in keys for key in output_keys(image, ("mask", "overlay", "confidence")))
            ledger.append(pa.table({"key": keys, "status": ["removed"] * len(keys)}), self.request.fence)
            self.totals["removed"] += len(keys)

    def _named(self, pages: Iterable[list[str]]) -> Iterator[list[str]]:
        """The keys of a manifest that no pattern leaves out."""
        for page in pages:
            named = [key for key in page if self._matches(key) is not False]
            self.totals["not_matched"] += len(page) - len(named)
            yield named

    def _chosen(self, item: Listed) -> bool:
        matches = self._matches(item.key)
        if matches is None:
            return item.key.rstrip("/").lower().endswith(SUFFIXES) or (item.key.endswith("/") and item.size == 0)
        return matches

    def _matches(self, key: str) -> bool | None:
        """What --include and --exclude say of a key; None if nothing."""
        if self.exclude is not None and self.exclude.match(key):
            return False
        return None if self.include is None else self.include.match(key) is not None

    def _verdict(self, item: Listed, code: int, reason: str, wanted: bool) -> tuple[str, str | None]:
        refusal = self._refusal(item)
        if refusal is not None:
            return ("vanished", refusal) if item.size < 0 else ("skipped", refusal)
        if not wanted:
            return ("unchanged", None) if code == DONE else ("failed_before", "as in an earlier run; --retry-failed")
        if self.todo_left == 0:
            return "skipped", f"over --limit {self.settings.limit}"
        self.todo_left -= 1
        return TODO, reason

    def _refusal(self, item: Listed) -> str | None:
        key, size = item.key, item.size
        if size < 0:
            return "is in the manifest, but not in the input"
        if not _is_unicode(key):
            return "has a name that is not Unicode"
        if key.startswith(OWN):
            return f"begins with {OWN}, which is ours"
        if size == 0:
            return "is a folder marker" if key.endswith("/") else "is empty (0 bytes)"
        if size > self.settings.max_bytes:
            return f"has {size} bytes, over --max-bytes {self.settings.max_bytes}"
        if item.storage_class in ARCHIVED:
            return f"is archived ({item.storage_class}); restore it first"
        for made in output_keys(key, self.outputs):
            if (refusal := self.target.refusal(made)) is not None:
                return refusal
        return None


def _is_unicode(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pattern(globs: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs)) if globs else None


class _Masks:
    """The masks that lie in the output, as sorted hashes: 16 bytes each."""

    def __init__(self, keys: npt.NDArray[np.uint64], etags: npt.NDArray[np.uint64]) -> None:
        order = np.argsort(keys)
        self.keys, self.etags = keys[order], etags[order]

    def hold(self, keys: Sequence[str], etags: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Whether the mask of each image key is there with the etag of this hash."""
        if not len(self.keys):
            return np.zeros(len(keys), bool)
        wanted = np.array([hash64(mask_key(key)) for key in keys], np.uint64)
        places = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        found: npt.NDArray[np.bool_] = (self.keys[places] == wanted) & (self.etags[places] == etags)
        return found


def _masks_of(target: Store) -> _Masks:
    pages = [
        np.array([(hash64(item.key), hash64(item.etag)) for item in page], np.uint64).reshape(-1, 2)
        for page in target.list()
    ]
    table = np.concatenate([np.empty((0, 2), np.uint64), *pages])
    return _Masks(table[:, 0], table[:, 1])
