"""Lists the input: every object with its status, page by page.

The status of an object is TODO, with the reason in `error`, or final: unchanged, skipped, ... What the ledger records
of it is found by lookup.py.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from unet.data.image import SUFFIXES, suffix_of
from unet.segment.catalogue import CATALOGUE
from unet.segment.item import Item
from unet.segment.ledger_part import columns
from unet.segment.lookup import Found, Lookup
from unet.segment.mask_index import MaskIndex
from unet.segment.run_spec import INTERNAL, KNOWN_OUTPUTS, OBJECTS, RunSpec
from unet.storage.objects import LISTED, NOT_UNICODE, ObjectInfo

TODO = "todo"
"""Status of an object that is to be segmented. An object with any other status is settled: it is final in this run."""

ROW_SCHEMA = pa.schema(
    [
        *columns("key", "etag", "size", "status", "error", "mask_etag", "mask_fence", "outputs", "there", "objects"),
        *CATALOGUE,
    ]
)
"""One row for each object. `error`: the reason for the status; `mask_etag`: of the mask that is recorded; `mask_fence`:
of the run that made it; `outputs`: what is to be written, with commas; `there`: what need not be; `objects`: the part
that is recorded of them; the others of an unchanged mask, as recorded."""

MAX_ENDINGS = 20
"""Endings of names that are not looked at, in summary.json."""

ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes whose objects cannot be read before they are restored."""

_HIDDEN = r"(^|/)\.([^./]|\.[^/])"
"""Names that begin with a dot, as a Mac, Jupyter and many others leave them, but `.` and `..`: they are left alone."""

_IMAGE = f"({'|'.join(map(re.escape, SUFFIXES))})/*$"
"""Names that end like an image."""

UNCHANGED = -1
"""In place of a reason."""

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
        self._over_limit = False
        self._has_patterns = bool(self.settings.include or self.settings.exclude)
        self._selects = selection(self.settings.include, self.settings.exclude)
        self._missing = list[pa.Array]()
        self._returned = set[str]()
        """Keys that came out of order, after they had been missed."""
        enough = [outputs for outputs in KNOWN_OUTPUTS if set(self.settings.outputs) <= set(outputs.split(","))]
        self._enough = pa.array(enough, pa.string())
        earlier = [name for name, outputs in spec.earlier.items() if outputs in enough]
        self._enough_by_earlier = pa.array(earlier, pa.string())
        wants_objects = bool(self.settings.object_classes)
        self._object_parts = pa.array(spec.object_parts.names(), pa.string()) if wants_objects else None
        """Of the objects that are asked for, if any are."""
        self.named_parts = set[str]()
        """All parts of objects that the ledger names."""

    @property
    def orphaned(self) -> int:
        """How many masks have lost their image."""
        return sum(1 for _ in self.orphans()) if self._returned else sum(map(len, self._missing))

    def orphans(self) -> Iterator[str]:
        """Yield the keys of masks that have lost their image."""
        return (key.as_py() for keys in self._missing for key in keys if key.as_py() not in self._returned)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of all objects, of ROW_SCHEMA, page by page."""
        for found in self._found():
            known, keys = found.known.combine_chunks(), found.page["key"].combine_chunks()
            if found.out_of_order:
                self._returned.update(known["key"].to_pylist())
            else:
                self._note_missing(known, pa.concat_arrays([keys, found.others["key"].combine_chunks()]))
            self.named_parts.update(known["objects"].drop_null().unique().to_pylist())
            self.not_matched += len(found.others)
            kinds = map(_kind, found.others["key"].to_pylist(), found.others["storage_class"].to_pylist())
            self.endings.update(filter(None, kinds))
            if len(found.page):
                self.listed += len(found.page)
                yield self._classify(found.page, known)
            if self._over_limit:
                self.complete = False
                return
        self.ended = True

    @property
    def facts(self) -> dict[str, Any]:
        """Return what summary.json says of names without a row, and of masks that have lost their image."""
        endings = dict(self.endings.most_common(MAX_ENDINGS))
        orphaned = self.orphaned if self.complete else 0
        return {"not_matched": self.not_matched, "not_looked_at": endings, "orphaned": orphaned}

    def _note_missing(self, known: pa.Table, listed: pa.Array) -> None:
        """Count the masks that are recorded, and note those whose images a page leaves out."""
        has_mask = pc.or_(pc.equal(known["status"], "done"), pc.is_valid(known["mask_etag"]))
        ours = pc.fill_null(pc.equal(known["input"], self.spec.input), True)  # format 1 does not know it
        self.recorded += pc.sum(pc.and_(has_mask, ours)).as_py() or 0
        if _is_column(listed, known["key"]):
            return
        missing = pc.and_not(has_mask, pc.is_in(known["key"], listed))
        if self.complete and pc.any(missing).as_py():
            self._missing.append(known["key"].filter(pc.and_(missing, ours)).combine_chunks())
            foreign = known["input"].filter(pc.and_not(missing, ours))
            self.foreign = self.foreign or (foreign[0].as_py() if len(foreign) else None)

    def _found(self) -> Iterator[Found]:
        """Return the objects, beside their rows of the ledger."""
        settings = self.settings
        lookup = Lookup(self.spec.ledger, self._select, workers=1 if settings.limit else settings.list_workers)
        if self.spec.manifest is None:
            return lookup.of_store(self.input)
        return lookup.of_pages(self.spec.manifest.pages(self.input, self._matches))

    def _matches(self, key: str) -> bool:
        """Return whether a key of a manifest is selected, and count it if it is not."""
        matches = self._selects(key) is not False
        self.not_matched += not matches
        return matches

    def _select(self, page: pa.Table) -> pa.ChunkedArray:
        """Return which objects of a page are selected."""
        keys = page["key"]
        if self.settings.manifest is not None:
            return pa.chunked_array([pa.repeat(True, len(keys))])
        is_folder = pc.and_(pc.ends_with(keys, "/"), pc.equal(page["size"], 0))
        selected = pc.or_(pc.match_substring_regex(keys, _IMAGE, ignore_case=True), is_folder)
        if self._has_patterns:
            says = pa.array([self._selects(key) for key in keys.to_pylist()], pa.bool_())
            selected = pc.coalesce(says, selected)
        left_alone = pc.or_(pc.match_substring_regex(keys, _HIDDEN), pc.equal(page["storage_class"], NOT_UNICODE))
        return pc.and_not(selected, left_alone)

    def _classify(self, page: pa.Table, known: pa.Table) -> pa.Table:
        """Return the rows of a page, in its order, with their statuses. `known`: rows of the ledger."""
        keys, sizes, etags, _ = (page[name].combine_chunks() for name in LISTED.names)
        recorded = known
        if not _is_column(keys, known["key"]):
            recorded = known.take(pc.index_in(keys, value_set=known["key"].combine_chunks()))
        reasons, names = self._reasons(recorded, etags, sizes)
        if self.masks is not None:
            there = self.masks.contains(keys.to_pylist(), recorded["mask_etag"].to_pylist())
            has_mask = (reasons == UNCHANGED) | (reasons == names.index(LACKING))
            reasons[has_mask & ~there] = names.index("mask missing or altered")
        statuses, errors, outputs, there = np.full((4, len(page)), None, object)
        statuses[:] = "unchanged"
        places = np.flatnonzero(reasons != UNCHANGED)
        others = page.take(pa.array(places)).to_pylist() if len(places) else []
        for place, row in zip(places.tolist(), others, strict=True):
            reason = names[reasons[place]]
            outputs[place], there[place] = self._outputs(reason, recorded, place)
            statuses[place], errors[place] = self._decide(ObjectInfo(**row), reason, outputs[place])
        described = recorded.select(CATALOGUE.names)
        if len(places):
            described = described.take(pa.array(np.arange(len(page)), mask=reasons != UNCHANGED))
        kept = [recorded["objects"], *described.columns]
        made_by = pc.coalesce(recorded["mask_fence"], recorded["fence"])
        arrays = [keys, etags, sizes, statuses, errors, recorded["mask_etag"], made_by, outputs, there, *kept]
        return pa.table(arrays, schema=ROW_SCHEMA)

    def _reasons(
        self, recorded: pa.Table, etags: pa.Array, sizes: pa.Array
    ) -> tuple[npt.NDArray[np.intp], Sequence[str]]:
        """Return why each object is to be segmented, or FAILED_BEFORE, as its place among the names of reasons;
        UNCHANGED if it is not."""
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
                pc.and_(
                    self._has_objects(recorded["objects"]),
                    pc.or_(
                        pc.is_in(fingerprint, self._enough_by_earlier),
                        pc.and_(pc.equal(fingerprint, spec.fingerprint), pc.is_in(recorded["outputs"], self._enough)),
                    ),
                )
            ),
        }
        flags = [pc.fill_null(condition, False).to_numpy() for condition in conditions.values()]
        return np.select(flags, list(range(len(flags))), UNCHANGED), [*conditions, "mask missing or altered"]

    def _outputs(self, reason: str, recorded: pa.Table, place: int) -> tuple[str, str]:
        """Return what is to be written for an object, and what is there and stays as it is, with commas."""
        if reason != LACKING:
            return ",".join([*self.settings.outputs, *([OBJECTS] if self._object_parts is not None else [])]), ""
        there = recorded["outputs"][place].as_py() or self.spec.earlier[recorded["fingerprint"][place].as_py()]
        lacking = [name for name in self.settings.outputs if name not in there.split(",")]
        has_objects = self._has_objects(recorded["objects"][place : place + 1])[0].as_py()
        return ",".join(lacking if has_objects else [*lacking, OBJECTS]), there

    def _has_objects(self, parts: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return whether each mask has the objects that are asked for. `parts`: those that the ledger names."""
        if self._object_parts is None:
            return pa.chunked_array([pa.repeat(True, len(parts))])
        return pc.is_in(parts, self._object_parts)

    def _decide(self, item: ObjectInfo, reason: str, outputs: str) -> tuple[str, str | None]:
        """Return status and error of an object that is not unchanged."""
        if item.size < 0:
            return "vanished", "is in the manifest, but not in the input"
        if (skip_reason := self._skip_reason(item, outputs)) is not None:
            return "skipped", skip_reason
        if reason == FAILED_BEFORE and not self.settings.retry_failed:
            return FAILED_BEFORE, "as in an earlier run; --retry-failed"
        if self.limit_left == 0:
            self._over_limit = True
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
        files = self.spec.output_keys(key, set(outputs.split(",")) - {OBJECTS})
        return next(filter(None, map(self.output.key_error, files)), None)


def items_of(rows: pa.Table | pa.RecordBatch) -> list[Item]:
    """Return the objects of rows TODO."""
    return list(map(Item, *(rows[field.name].to_pylist() for field in fields(Item))))


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


def _is_column(keys: pa.Array, column: pa.ChunkedArray) -> bool:
    """Return whether a column holds these very keys, as where nothing has changed."""
    return len(keys) == len(column) and bool(column.combine_chunks().equals(keys))


def _compile_globs(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)) or "(?!)")


def _ending(key: str) -> str:
    """Return how a name ends, as in ".heic"; "" if it has no ending, or one that is none."""
    ending = suffix_of(key.rstrip("/")).lower()
    return ending if ending[1:].isalnum() and len(ending) <= 6 else ""


def _kind(key: str, storage_class: str) -> str:
    """Return what a name that is not looked at is counted as."""
    return NOT_UNICODE if storage_class == NOT_UNICODE else "hidden" if re.search(_HIDDEN, key) else _ending(key)
