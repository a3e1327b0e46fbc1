"""The ledger: what has been segmented, from which bytes, by which model. Parquet files ("parts") in one folder.

Parts are named `{fence}-{uuid}.parquet` and never changed. Of the rows of one key, the one with the highest fence
counts, then the latest `time`. Keys are looked up in a LedgerIndex, which holds 64-bit hashes only, 26 bytes a row
(n: keys asked, N: keys recorded). Recorded keys are valid Unicode, since Arrow stores no others; any other key is NEW.
"""

import contextlib
import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, pairwise
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unet.settings import RequestError
from unet.storage.faults import Vanished
from unet.storage.objects import ObjectInfo
from unet.storage.s3 import RETRY_SECONDS
from unet.storage.store import open_store

NEW, CHANGED, MODEL_CHANGED, DONE, FAILED = range(5)
"""What the ledger says of an object: nothing; recorded with another etag or size; with the same bytes, but another
fingerprint; done and unchanged; failed before, with the same bytes and settings."""

FORMAT = 1
"""Format version of a part; parts of a newer one are refused."""

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("fingerprint", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("mask_etag", pa.string()),
        ("time", pa.float64()),
    ]
)
"""Columns of a row. `status`: done, failed or removed; `fingerprint`: of the model and the settings that decide the
mask (done) or the failure (failed); `time`: seconds since the epoch."""

Hashes = NDArray[np.uint64]
Columns = dict[str, NDArray[Any]]

_HASHES = ("key_hash", "object_hash", "state_hash", "mask_hash")
_SCHEMA = pa.schema(
    [*COLUMNS, ("fence", pa.int64()), *((name, pa.uint64()) for name in _HASHES)], metadata={"format": str(FORMAT)}
)
_VERSION_COLUMNS = ("key_hash", "fence", "time", "status")
"""The columns that decide which row of a key counts, and whether it says that the key was removed."""

_INDEX_COLUMNS = (*_VERSION_COLUMNS, "object_hash", "state_hash")

_STATUSES = ("done", "failed", "removed")
_STATUS_DONE, _STATUS_FAILED, _STATUS_REMOVED = range(3)

_PART_NAME = re.compile(r"(\d{12,})-[0-9a-f]{32}\.parquet")
_SMALL_PART, _MERGED_PART = 4 << 20, 8 << 20
"""Bytes below which parts are merged, and about which they are merged to."""

_READ_ATTEMPTS = 5


class Ledger:
    """The parts in the folder `uri`; other files in it are ignored. `retry_seconds`: as for `open_store`."""

    def __init__(self, uri: str, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self._uri = uri
        self._store = open_store(uri, retry_seconds=retry_seconds)

    def next_fence(self) -> int:
        """Return one more than the highest fence of all parts; 1 if there are none."""
        return 1 + max((int(part.key.partition("-")[0]) for part in self._parts()), default=0)

    def append(self, rows: pa.Table, fence: int) -> None:
        """Write one part. `rows` have columns of COLUMNS; those left out are null, and `time` is now."""
        self._write([_with_all_columns(rows, fence)], fence)

    def load(self, *, masks: bool = False) -> "LedgerIndex":
        """Return the index over all parts, which are read one by one. `masks`: for `mask_hashes`, 8 bytes a row more.

        Raise RequestError if a part is damaged or was written by a newer version.
        """
        names = (*_INDEX_COLUMNS, "mask_hash") if masks else _INDEX_COLUMNS
        for _ in range(_READ_ATTEMPTS):
            with contextlib.suppress(Vanished):  # a part was merged meanwhile: its rows are in another
                return LedgerIndex(self._tables(names), names)
        raise self._vanishing_error()

    def find_keys(self, hashes: Hashes) -> Iterator[list[str]]:
        """Yield the recorded keys with these key hashes, each once, part by part. Raise RequestError as `load`."""
        wanted = np.unique(hashes)
        for _ in range(_READ_ATTEMPTS):
            with contextlib.suppress(Vanished):
                for table in self._tables(("key", "key_hash")):
                    found, places, _ = np.intersect1d(table["key_hash"].to_numpy(), wanted, return_indices=True)
                    wanted = np.setdiff1d(wanted, found, assume_unique=True)
                    if len(places):
                        yield table["key"].take(places).to_pylist()
                    if not len(wanted):
                        break
                return
        raise self._vanishing_error()

    def compact(self, fence: int) -> None:
        """Merge small parts, and drop rows that no longer count.

        A merged part is written before those that it replaces are deleted; a crash between the two changes no answer.
        Rows `removed` are dropped only when one part is left, since they hide older rows of their keys in other parts.
        """
        with contextlib.suppress(Vanished):  # another process compacts at the same time
            removed = False
            for group in _merge_groups([part for part in self._parts() if part.size < _SMALL_PART]):
                removed = self._merge(group, fence)
            if removed and len(parts := self._parts()) == 1:
                self._merge(parts, fence, drop_removed=True)

    def _merge(self, parts: Sequence[ObjectInfo], fence: int, *, drop_removed: bool = False) -> bool:
        """Replace `parts` by one; return whether it has rows `removed`.

        Takes the memory of their bytes, of one decoded part, and 25 bytes a row (twice that while they are sorted).
        """
        bodies = {part.key: self._store.get(part.key) for part in parts}
        names = list(bodies)
        columns = _concatenate((self._parse(name, bodies[name], _VERSION_COLUMNS) for name in names), _VERSION_COLUMNS)
        keep = np.zeros(len(columns["key_hash"]), bool)
        keep[_latest_rows(columns)] = True
        removed = keep & (columns["status"] == _STATUS_REMOVED)
        if drop_removed:
            keep &= ~removed
        del columns

        def kept() -> Iterator[pa.Table]:
            first = 0
            for name in names:
                table = self._parse(name, bodies.pop(name), _SCHEMA.names)
                yield table.filter(pa.array(keep[first : first + table.num_rows]))
                first += table.num_rows

        self._write(kept(), fence)
        self._store.delete(names)
        return bool(removed.any())

    def _parts(self) -> list[ObjectInfo]:
        return [part for page in self._store.list() for part in page if _PART_NAME.fullmatch(part.key)]

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        for part in self._parts():
            yield self._parse(part.key, self._store.get(part.key), columns)

    def _parse(self, name: str, body: bytes, columns: Sequence[str]) -> pa.Table:
        pa.default_memory_pool().release_unused()  # memory of the part before, which Arrow would keep
        try:
            file = pq.ParquetFile(pa.BufferReader(body), page_checksum_verification=True)
            version = int(file.schema_arrow.metadata[b"format"])
            if version <= FORMAT:
                return file.read(list(columns)).select(columns)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"{self._uri}/{name}: is damaged; delete it, and what it records is segmented again"
            ) from error
        raise RequestError(f"{self._uri}/{name}: was written by a newer version; update this one")

    def _write(self, tables: Iterable[pa.Table], fence: int) -> None:
        sink = io.BytesIO()
        repeated = ["fingerprint", "status", "error", "fence"]
        with pq.ParquetWriter(
            sink, _SCHEMA, compression="zstd", use_dictionary=repeated, write_page_checksum=True
        ) as writer:
            for table in tables:
                writer.write_table(table)
        self._store.put(f"{fence:012d}-{uuid4().hex}.parquet", sink.getvalue())

    def _vanishing_error(self) -> RequestError:
        return RequestError(f"{self._uri}: parts vanish while they are read; let no other program delete in there")


class LedgerIndex:
    """Sorted key hashes, each with the columns of the row that counts. Keys whose row is `removed` are left out."""

    def __init__(self, tables: Iterable[pa.Table], names: Sequence[str]) -> None:
        columns = _concatenate(tables, names)
        newest = _latest_rows(columns)
        del columns["fence"], columns["time"]
        newest = newest[columns["status"][newest] != _STATUS_REMOVED]
        self._columns = {name: columns.pop(name)[newest] for name in list(columns)}
        self._seen = np.zeros(len(newest), bool)
        pa.default_memory_pool().release_unused()

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(column.nbytes for column in (self._seen, *self._columns.values()))

    def lookup(
        self,
        keys: Sequence[str],
        etags: Sequence[str],
        sizes: Sequence[int],
        fingerprint: str,
        failed_fingerprint: str,
    ) -> NDArray[np.uint8]:
        """Return NEW, CHANGED, ... for each object (n uint8), and mark its key as seen.

        Rows `done` are compared with `fingerprint`, rows `failed` with `failed_fingerprint`.
        """
        if not len(self):
            return np.full(len(keys), NEW, np.uint8)
        places, known = self._find(keys)
        self._seen[places[known]] = True
        objects = _object_hashes(etags, sizes)
        failed = self._columns["status"][places] == _STATUS_FAILED
        states = objects ^ np.array([hash64(fingerprint), hash64(failed_fingerprint)], np.uint64)[failed.astype(int)]
        changed = self._columns["object_hash"][places] != objects
        other_model = self._columns["state_hash"][places] != states
        answers = (NEW, CHANGED, MODEL_CHANGED, FAILED)
        return np.select((~known, changed, other_model, failed), answers, DONE).astype(np.uint8)

    def mask_hashes(self, keys: Sequence[str]) -> Hashes:
        """Return `hash64` of the recorded etag of each key's mask (n uint64), 0 where there is none.

        Only for an index from `load(masks=True)`.
        """
        if not len(self):
            return np.zeros(len(keys), np.uint64)
        places, known = self._find(keys)
        hashes: Hashes = np.where(known, self._columns["mask_hash"][places], np.uint64(0))
        return hashes

    def mark_seen(self, keys: Sequence[str]) -> None:
        """Mark keys as seen that are not looked up."""
        if len(self) and len(keys):
            places, known = self._find(keys)
            self._seen[places[known]] = True

    def unseen(self) -> Hashes:
        """Return the key hashes of the rows `done` whose keys were not seen."""
        hashes: Hashes = self._columns["key_hash"][~self._seen & (self._columns["status"] == _STATUS_DONE)]
        return hashes

    def _find(self, keys: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the row of each key (any row if it has none), and whether it has one. Only for N > 0."""
        hashes = _hash_all(keys)
        places = np.minimum(np.searchsorted(self._columns["key_hash"], hashes), len(self) - 1)
        return places, self._columns["key_hash"][places] == hashes


def hash64(*parts: str | int) -> int:
    """Return 64 bits of BLAKE2b over the parts, joined by NUL."""
    return int.from_bytes(_digest("\0".join(map(str, parts))), "little")


def _digest(text: str) -> bytes:
    # surrogatepass gives a file name that is no valid Unicode a hash too, which no other name has.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _hash_all(texts: Iterable[str | None]) -> Hashes:
    """Return `hash64` of each text (n uint64), and 0 for None."""
    return np.frombuffer(b"".join([bytes(8) if text is None else _digest(text) for text in texts]), "<u8")


def _object_hashes(etags: Iterable[str], sizes: Iterable[int]) -> Hashes:
    return _hash_all(map("{}\0{}".format, etags, sizes))


def _with_all_columns(rows: pa.Table, fence: int) -> pa.Table:
    """Return `rows` with all columns of _SCHEMA. `state_hash` is `object_hash` XOR the hash of the fingerprint."""
    columns: dict[str, Any] = dict.fromkeys(COLUMNS.names, [None] * len(rows))
    columns |= {"time": [time.time()] * len(rows), "fence": [fence] * len(rows)} | rows.to_pydict()
    assert set(columns["status"]) <= set(_STATUSES), "rows with an unknown status"
    objects = _object_hashes(columns["etag"], columns["size"])
    columns |= {
        "key_hash": _hash_all(columns["key"]),
        "object_hash": objects,
        "state_hash": objects ^ _hash_all(columns["fingerprint"]),
        "mask_hash": _hash_all(columns["mask_etag"]),
    }
    return pa.table(columns, schema=_SCHEMA)


def _concatenate(tables: Iterable[pa.Table], names: Sequence[str]) -> Columns:
    """Return the columns of all tables, concatenated; `status` as its index in _STATUSES (uint8)."""
    pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for table in chain([_SCHEMA.empty_table()], tables):
        for name in names:
            column = table[name]
            if name == "status":
                column = pc.index_in(column, pa.array(_STATUSES)).cast(pa.uint8())
            pieces[name].append(column.to_numpy())
    return {name: np.concatenate(pieces.pop(name)) for name in names}  # pop frees the pieces


def _latest_rows(columns: Columns) -> NDArray[np.intp]:
    """Return the indices of the rows that count, sorted by key hash."""
    order = np.lexsort((columns["time"], columns["fence"], columns["key_hash"]))
    keys = columns["key_hash"][order]
    last = np.ones(len(keys), bool)
    last[:-1] = keys[1:] != keys[:-1]
    return order[last]


def _merge_groups(parts: Sequence[ObjectInfo]) -> list[Sequence[ObjectInfo]]:
    """Return groups of neighbouring parts, of two parts or more and about _MERGED_PART bytes at most."""
    ends = np.cumsum([part.size for part in parts])
    cuts = [0, *(np.flatnonzero(np.diff(ends // _MERGED_PART)) + 1), len(parts)]
    return [parts[first:end] for first, end in pairwise(cuts) if end - first > 1]
