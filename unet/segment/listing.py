"""Lists the input: every object with its status, in chunks, the first of which are segmented while the listing goes on.

The status of an object is TODO, with the reason in `error`, or final: unchanged, skipped, ... Memory does not grow with
the listing; only the index of the ledger is held.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from unet.data.image import SUFFIXES
from unet.segment.chunk import TODO, Chunk, rows_table
from unet.segment.ledger import CHANGED, DONE, FAILED, MODEL_CHANGED, NEW
from unet.segment.manifest import head_objects, manifest_keys
from unet.segment.mask_index import MaskIndex
from unet.segment.run_spec import INTERNAL, RunSpec, output_keys
from unet.storage.objects import Guard, ObjectInfo, no_guard

TODO_REASONS = {
    NEW: "new",
    CHANGED: "changed",
    MODEL_CHANGED: "model or settings changed",
    DONE: "forced",
    FAILED: "retried",
}
"""Why an object is segmented, by what the ledger says of it."""

ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes whose objects cannot be read before they are restored."""

MIN_CHUNK, MAX_CHUNK, SETTLED_CHUNK = 1, 256, 8192
"""Objects of a chunk. A chunk to be segmented has a 32nd of all objects before it, but at least MIN_CHUNK and at most
MAX_CHUNK: so every worker soon has one, and none is left with many at the end. It is no smaller, since Ray keeps some
10 kB for each. Settled objects cost nothing, and go in chunks of SETTLED_CHUNK."""


def list_chunks(spec: RunSpec, guard: Guard = no_guard) -> Iterator[Chunk]:
    """Yield all objects of the input, each once. `guard` is called before masks are removed."""
    lister = _Lister(spec, guard)
    waiting = settled = rows_table({"key": []})
    emitted = 0
    for page in lister.pages():
        rows = lister.classify(page)
        todo = pc.equal(rows["status"], TODO)
        # combine_chunks, since the pieces of which a table consists add up even where they are empty.
        waiting = pa.concat_tables([waiting, rows.filter(todo)]).combine_chunks()
        settled = pa.concat_tables([settled, rows.filter(pc.invert(todo))]).combine_chunks()
        while len(waiting) >= (size := _chunk_size(emitted)):
            yield Chunk(_first_rows(waiting, size))
            waiting, emitted = waiting.slice(size), emitted + size
        if len(settled) >= SETTLED_CHUNK:
            yield Chunk(settled)
            settled = _first_rows(settled, 0)
        if lister.limit_left == 0:
            break
    if len(waiting):
        yield Chunk(_first_rows(waiting, len(waiting)))
    if len(settled):
        yield Chunk(settled)
    # Masks are removed only when all chunks have been taken.
    yield Chunk(_first_rows(settled, 0), lister.finish())


def _first_rows(rows: pa.Table, count: int) -> pa.Table:
    """Return a copy of the first rows: a slice would be pickled with all that it is a slice of."""
    return rows.take(np.arange(count))


def _chunk_size(emitted: int) -> int:
    return max(MIN_CHUNK, min(emitted // 32, MAX_CHUNK))


class _Lister:
    """Lists objects, and decides their status by their name, the listing and the ledger."""

    def __init__(self, spec: RunSpec, guard: Guard) -> None:
        self.spec, self.guard = spec, guard
        self.settings = settings = spec.settings
        self.input, self.output = spec.input_store, spec.output_store
        self.index = spec.ledger.load(masks=settings.verify)
        self.masks = MaskIndex(self.output) if settings.verify else None
        self.totals: Counter[str] = Counter()
        self.limit_left = settings.limit if settings.limit is not None else -1
        self.include, self.exclude = _compile_globs(settings.include), _compile_globs(settings.exclude)

    def pages(self) -> Iterator[list[ObjectInfo]]:
        """Yield the objects that the settings select, in pages that are not empty."""
        if self.settings.manifest is not None:
            yield from head_objects(self._matching_keys(manifest_keys(self.settings.manifest)), self.input)
            return
        for page in self.input.list():
            selected, others = list[ObjectInfo](), list[str]()
            for item in page:
                selected.append(item) if self._is_selected(item) else others.append(item.key)
            self.totals["not_matched"] += len(others)
            self.index.mark_seen(others)  # their masks are no orphans
            if selected:
                yield selected

    def classify(self, page: list[ObjectInfo]) -> pa.Table:
        """Return the rows of a page, in its order, with their statuses."""
        settings, spec = self.settings, self.spec
        keys = [item.key for item in page]
        etags = [item.etag for item in page]
        sizes = [item.size for item in page]
        states = self.index.lookup(keys, etags, sizes, spec.fingerprint, spec.failed_fingerprint)
        reasons = [TODO_REASONS[state] for state in states.tolist()]
        todo = (states != DONE) & (states != FAILED)
        if settings.force:
            todo[:] = True
        if settings.retry_failed:
            todo |= states == FAILED
        if self.masks is not None:
            missing = (states == DONE) & ~self.masks.contains(keys, self.index.mask_hashes(keys))
            todo |= missing
            for place in np.flatnonzero(missing):
                reasons[place] = "mask missing or altered"
        found = [self._status(*known) for known in zip(page, states.tolist(), reasons, todo.tolist(), strict=True)]
        statuses, errors = zip(*found, strict=True)
        keys = [key if _is_unicode(key) else ascii(key)[1:-1] for key in keys]
        return rows_table({"key": keys, "etag": etags, "size": sizes, "status": statuses, "error": errors})

    def finish(self) -> Counter[str]:
        """Count the masks without an image, or remove them, if the listing is complete; return all totals."""
        settings = self.settings
        complete = settings.manifest is None and not settings.include and not settings.exclude and self.limit_left != 0
        if complete:
            orphans = self.index.unseen()
            if settings.prune and not settings.dry_run:
                self._remove(orphans)
            else:
                self.totals["orphaned"] += len(orphans)
        return self.totals

    def _remove(self, orphans: npt.NDArray[np.uint64]) -> None:
        ledger = self.spec.ledger
        for keys in ledger.find_keys(orphans):
            self.guard()
            self.output.delete(key for image in keys for key in output_keys(image, ("mask", "overlay", "confidence")))
            ledger.append(pa.table({"key": keys, "status": ["removed"] * len(keys)}), self.spec.fence)
            self.totals["removed"] += len(keys)

    def _matching_keys(self, pages: Iterable[list[str]]) -> Iterator[list[str]]:
        """Yield the keys of a manifest without those that --include and --exclude leave out."""
        for page in pages:
            matching = [key for key in page if self._matches(key) is not False]
            self.totals["not_matched"] += len(page) - len(matching)
            yield matching

    def _is_selected(self, item: ObjectInfo) -> bool:
        matches = self._matches(item.key)
        if matches is None:
            return item.key.rstrip("/").lower().endswith(SUFFIXES) or (item.key.endswith("/") and item.size == 0)
        return matches

    def _matches(self, key: str) -> bool | None:
        """Return whether --include and --exclude select `key`; None if they leave that open."""
        if self.exclude is not None and self.exclude.match(key):
            return False
        return None if self.include is None else self.include.match(key) is not None

    def _status(self, item: ObjectInfo, state: int, reason: str, todo: bool) -> tuple[str, str | None]:
        """Return status and error. `state`: of the ledger; `reason`: why the object would be segmented."""
        if item.size < 0:
            return "vanished", "is in the manifest, but not in the input"
        if (skip_reason := self._skip_reason(item)) is not None:
            return "skipped", skip_reason
        if not todo:
            return ("unchanged", None) if state == DONE else ("failed_before", "as in an earlier run; --retry-failed")
        if self.limit_left == 0:
            return "skipped", f"over --limit {self.settings.limit}"
        self.limit_left -= 1
        return TODO, reason

    def _skip_reason(self, item: ObjectInfo) -> str | None:
        key, size = item.key, item.size
        if not _is_unicode(key):
            return "has a name that is not Unicode"
        if key.startswith(INTERNAL):
            return f"begins with {INTERNAL}, which is ours"
        if size == 0:
            return "is a folder marker" if key.endswith("/") else "is empty (0 bytes)"
        if size > self.settings.max_bytes:
            return f"has {size} bytes, over --max-bytes {self.settings.max_bytes}"
        if item.storage_class in ARCHIVED:
            return f"is archived ({item.storage_class}); restore it first"
        return next(filter(None, map(self.output.key_error, output_keys(key, self.settings.outputs))), None)


def _is_unicode(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _compile_globs(globs: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs)) if globs else None
