"""Lists the input: every object with its status, page by page, in the order of its keys where the server keeps one.

The status of an object is TODO, with the reason in `error`, or final: unchanged, skipped, ... It is found by a merge of
two sorted streams, the listing and the ledger, in memory that grows with neither.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from unet.data.image import SUFFIXES, suffix_of
from unet.runtime.background import read_ahead
from unet.segment.item import Item
from unet.segment.ledger import LedgerCursor, columns
from unet.segment.manifest import head_objects, manifest_keys
from unet.segment.mask_index import MaskIndex
from unet.segment.run_spec import INTERNAL, KNOWN_OUTPUTS, RunSpec
from unet.storage.objects import ObjectInfo

TODO = "todo"
"""Status of an object that is to be segmented. An object with any other status is settled: it is final in this run."""

ROW_SCHEMA = columns("key", "etag", "size", "status", "error", "mask_etag", "outputs", "there")
"""One row for each object. `error`: the reason for the status; `mask_etag`: of the mask that is recorded; `outputs`:
what is to be written, with commas; `there`: what need not be."""

MAX_ENDINGS = 20
"""Endings of names that are not looked at, in summary.json."""

ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes whose objects cannot be read before they are restored."""

_HIDDEN = re.compile(r"(^|/)\.(?!\.?(/|$))")
"""Names that begin with a dot, as a Mac, Jupyter and many others leave them: they are left alone."""

FAILED_BEFORE, LACKING = "failed_before", "lacks an output"


class Listing:
    """The objects of an input, each once.

    `listed`: rows so far; `not_matched`: objects without a row; `endings`: how most of their names end;
    `ended`: all tables have been taken, and no --limit left objects out; `complete`: no setting leaves objects out. At
    the end of a complete listing `recorded` counts the masks of this input in the ledger, `orphaned` those of them that
    have lost their image, and `foreign` is another input of which the ledger records masks.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec, self.settings = spec, spec.settings
        self.input, self.output = spec.input_store, spec.output_store
        self.masks = MaskIndex(self.output, spec.mask_suffix) if self.settings.verify else None
        self.not_matched = 0
        self.endings: Counter[str] = Counter()
        self.listed = self.recorded = 0
        self.ended = False
        self.foreign: str | None = None
        self.complete = not (self.settings.manifest or self.settings.include or self.settings.exclude)
        self.limit_left = self.settings.limit if self.settings.limit is not None else -1
        self._selects = selection(self.settings.include, self.settings.exclude)
        self._missing = list[pa.Array]()
        self._returned = set[str]()
        """Keys that came out of order, after they had been missed."""
        enough = [outputs for outputs in KNOWN_OUTPUTS if set(self.settings.outputs) <= set(outputs.split(","))]
        self._enough = pa.array(enough, pa.string())
        earlier = [name for name, outputs in spec.earlier.items() if outputs in enough]
        self._enough_by_earlier = pa.array(earlier, pa.string())

    @property
    def orphaned(self) -> int:
        """How many masks have lost their image."""
        return sum(1 for _ in self.orphans()) if self._returned else sum(map(len, self._missing))

    def orphans(self) -> Iterator[str]:
        """Yield the keys of masks that have lost their image."""
        return (key.as_py() for keys in self._missing for key in keys if key.as_py() not in self._returned)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of all objects, of ROW_SCHEMA, page by page."""
        cursor, last = LedgerCursor(self.spec.ledger.rows()), None
        for page, others in read_ahead(self._pages()):
            keys = [item.key for item in page] + others
            least, most = min(keys), max(keys)
            if last is None or least > last:
                for known in cursor.before(least):
                    self._note_missing(known, [])
                known, last = cursor.up_to(most), most
                self._note_missing(known, keys)
            else:  # a server that does not keep the order: these keys are looked up by themselves
                known = LedgerCursor(self.spec.ledger.rows(least, most + "\0")).up_to(most)
                known = known.filter(pc.is_in(known["key"], pa.array(keys, pa.string())))
                self._returned.update(known["key"].to_pylist())
            if page:
                self.listed += len(page)
                yield self._classify(page, known)
            if self.limit_left == 0:
                self.complete = False
                return
        for known in cursor.before(None):
            self._note_missing(known, [])
        self.ended = True

    @property
    def facts(self) -> dict[str, Any]:
        """Return what summary.json says of names without a row, and of masks that have lost their image."""
        endings = dict(self.endings.most_common(MAX_ENDINGS))
        orphaned = self.orphaned if self.complete else 0
        return {"not_matched": self.not_matched, "not_looked_at": endings, "orphaned": orphaned}

    def _note_missing(self, known: pa.Table, listed: Sequence[str]) -> None:
        """Count the masks that are recorded, and note those whose images a page leaves out."""
        has_mask = pc.or_(pc.equal(known["status"], "done"), pc.is_valid(known["mask_etag"]))
        ours = pc.fill_null(pc.equal(known["input"], self.spec.input), True)  # format 1 does not know it
        self.recorded += pc.sum(pc.and_(has_mask, ours)).as_py() or 0
        missing = pc.and_not(has_mask, pc.is_in(known["key"], pa.array(listed, pa.string())))
        if self.complete and pc.any(missing).as_py():
            self._missing.append(known["key"].filter(pc.and_(missing, ours)).combine_chunks())
            foreign = known["input"].filter(pc.and_not(missing, ours))
            self.foreign = self.foreign or (foreign[0].as_py() if len(foreign) else None)

    def _pages(self) -> Iterator[tuple[list[ObjectInfo], list[str]]]:
        """Yield the objects that are selected, and the keys of the others, in pages; no page is empty."""
        if self.settings.manifest is not None:
            for keys in manifest_keys(self.settings.manifest):
                matching = [key for key in keys if self._selects(key) is not False]
                self.not_matched += len(keys) - len(matching)
                if matching:
                    yield head_objects(matching, self.input), []
            return
        for page in self.input.list():
            selected = [item for item in page if self._is_selected(item)]
            others = list[str]()
            if len(selected) < len(page):
                kept = {item.key for item in selected}
                others = [item.key for item in page if item.key not in kept]
                self.not_matched += len(others)
                self.endings.update(filter(None, map(_kind, others)))
                others = list(filter(_is_unicode, others))
            if selected or others:
                yield selected, others

    def _is_selected(self, item: ObjectInfo) -> bool:
        key = item.key
        if not _is_unicode(key) or ("." in key and _HIDDEN.search(key)):
            return False
        if (matches := self._selects(key)) is not None:
            return matches
        return key.rstrip("/").lower().endswith(SUFFIXES) or (key.endswith("/") and item.size == 0)

    def _classify(self, page: list[ObjectInfo], known: pa.Table) -> pa.Table:
        """Return the rows of a page, in its order, with their statuses. `known`: rows of the ledger."""
        keys, etags = pa.array([item.key for item in page]), pa.array([item.etag for item in page])
        sizes = pa.array([item.size for item in page], pa.int64())
        recorded = known.take(pc.index_in(keys, value_set=known["key"].combine_chunks()))
        reasons = self._reasons(recorded, etags, sizes)
        if self.masks is not None:
            there = self.masks.contains(keys.to_pylist(), recorded["mask_etag"].to_pylist())
            reasons[(reasons == "") & ~there] = "mask missing or altered"
        statuses, errors, outputs, there = np.full((4, len(page)), None, object)
        statuses[:] = "unchanged"
        for place in np.flatnonzero(reasons != "").tolist():
            reason = str(reasons[place])
            outputs[place], there[place] = self._outputs(reason, recorded, place)
            statuses[place], errors[place] = self._decide(page[place], reason, outputs[place])
        arrays = [keys, etags, sizes, statuses, errors, recorded["mask_etag"], outputs, there]
        return pa.table(arrays, schema=ROW_SCHEMA)

    def _reasons(self, recorded: pa.Table, etags: pa.Array, sizes: pa.Array) -> npt.NDArray[np.str_]:
        """Return why each object is to be segmented, or FAILED_BEFORE; "" if it is unchanged."""
        spec, fingerprint = self.spec, recorded["fingerprint"]
        failed = pc.equal(recorded["status"], "failed")
        since = spec.forced_since if spec.forced_since is not None else 0
        conditions = {
            "new": pc.is_null(recorded["status"]),
            "changed": pc.invert(pc.and_(pc.equal(recorded["etag"], etags), pc.equal(recorded["size"], sizes))),
            "forced": pc.less(recorded["fence"], since),
            FAILED_BEFORE: pc.and_(failed, pc.is_in(fingerprint, pa.array(spec.failed_fingerprints))),
            "model or settings changed": pc.invert(pc.is_in(fingerprint, pa.array([spec.fingerprint, *spec.earlier]))),
            LACKING: pc.invert(
                pc.or_(
                    pc.is_in(fingerprint, self._enough_by_earlier),
                    pc.and_(pc.equal(fingerprint, spec.fingerprint), pc.is_in(recorded["outputs"], self._enough)),
                )
            ),
        }
        flags = [pc.fill_null(condition, False).to_numpy() for condition in conditions.values()]
        return np.select(flags, list(conditions), "")

    def _outputs(self, reason: str, recorded: pa.Table, place: int) -> tuple[str, str]:
        """Return what is to be written for an object, and what is there and stays as it is, with commas."""
        if reason != LACKING:
            return ",".join(self.settings.outputs), ""
        there = recorded["outputs"][place].as_py() or self.spec.earlier[recorded["fingerprint"][place].as_py()]
        return ",".join(name for name in self.settings.outputs if name not in there.split(",")), there

    def _decide(self, item: ObjectInfo, reason: str, outputs: str) -> tuple[str, str | None]:
        """Return status and error of an object that is not unchanged."""
        if item.size < 0:
            return "vanished", "is in the manifest, but not in the input"
        if (skip_reason := self._skip_reason(item, outputs)) is not None:
            return "skipped", skip_reason
        if reason == FAILED_BEFORE and not self.settings.retry_failed:
            return FAILED_BEFORE, "as in an earlier run; --retry-failed"
        if self.limit_left == 0:
            return "skipped", f"over --limit {self.settings.limit}"
        self.limit_left -= 1
        return TODO, "retried" if reason == FAILED_BEFORE else reason

    def _skip_reason(self, item: ObjectInfo, outputs: str) -> str | None:
        key, size = item.key, item.size
        if key.startswith(INTERNAL):
            return f"begins with {INTERNAL}, which is ours"
        if size == 0:
            return "is a folder marker" if key.endswith("/") else "is empty (0 bytes)"
        if size > self.settings.max_bytes:
            return f"has {size} bytes, over --max-bytes {self.settings.max_bytes}"
        if item.storage_class in ARCHIVED:
            return f"is archived ({item.storage_class}); restore it first"
        return next(filter(None, map(self.output.key_error, self.spec.output_keys(key, outputs.split(",")))), None)


def items_of(rows: pa.Table) -> list[Item]:
    """Return the objects of rows TODO."""
    columns = (rows[name].to_pylist() for name in ("key", "etag", "size", "outputs", "there", "mask_etag"))
    return list(map(Item, *columns))


def selection(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool | None]:
    """Return what says whether --include and --exclude select a key; None if they leave that open.

    A pattern with an ending, as *.bin, selects whatever it fits; any other only names that end like an image, or have
    no ending.
    """
    with_ending = [glob for glob in include if re.search(r"\.\w+$", glob)]
    excluded, exact, loose = map(_compile_globs, (exclude, with_ending, set(include) - set(with_ending)))

    def select(key: str) -> bool | None:
        if excluded.match(key):
            return False
        if not include or exact.match(key):
            return bool(include) or None
        return bool(loose.match(key)) and (_ending(key) in ("", *SUFFIXES))

    return select


def _compile_globs(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)) or "(?!)")


def _ending(key: str) -> str:
    """Return how a name ends, as in ".heic"; "" if it has no ending, or one that is none."""
    ending = suffix_of(key.rstrip("/")).lower()
    return ending if ending[1:].isalnum() and len(ending) <= 6 else ""


def _kind(key: str) -> str:
    """Return what a name that is not looked at is counted as."""
    return "hidden" if _HIDDEN.search(key) else _ending(key) if _is_unicode(key) else "not Unicode"


def _is_unicode(key: str) -> bool:
    return key.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in key)
