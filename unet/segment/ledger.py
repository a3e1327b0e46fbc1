"""What has been segmented, from which bytes, by which model: Parquet parts in one folder, and the look-up over them.

Parts are written once, named `{fence}-{uuid}.parquet`, and never changed. Of the rows of one key, the one with the
highest fence counts, then the latest `time`. The look-up holds 64-bit hashes alone, 26 bytes a row (n: keys asked,
N: keys recorded); keys are valid Unicode (Arrow holds no other), and any other is always NEW.
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
from unet.storage.listed import Listed
from unet.storage.s3 import RETRY_FOR
from unet.storage.store import open_store

NEW, CHANGED, MODEL_CHANGED, DONE, FAILED = range(5)
"""What the ledger says of an object: nothing; recorded with another etag or size; with the same bytes, but under
another fingerprint; done and unchanged; failed before, with the same bytes and settings."""

FORMAT = 1
"""Version of a part; a newer one is refused."""

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
"""What a row records. `status`: done, failed or removed; `fingerprint`: of the model and the settings that decide the
mask (done) or the failure (failed); `time`: seconds since the epoch."""

Hashes = NDArray[np.uint64]
Columns = dict[str, NDArray[Any]]

_KINDS = list(zip(COLUMNS.names, COLUMNS.types, strict=True))
_HASHES = ("key_hash", "object_hash", "state_hash", "mask_hash")
_SCHEMA = pa.schema(
    [*COLUMNS, ("fence", pa.int64()), *((name, pa.uint64()) for name in _HASHES)], metadata={"format": str(FORMAT)}
)
_ORDER = ("key_hash", "fence", "time", "status")
"""What decides between the rows of a key."""

_LOOK_UP = (*_ORDER, "object_hash", "state_hash")

_STATUSES = ("done", "failed", "removed")
_WAS_DONE, _HAS_FAILED, _REMOVED = range(3)

_PART = re.compile(r"(\d{12,})-[0-9a-f]{32}\.parquet")
_SMALL, _LARGE = 4 << 20, 8 << 20
_ATTEMPTS = 5


class Ledger:
    """The parts in the folder `uri`; other files in it are left alone. `retry_for`: as `open_store`."""

    def __init__(self, uri: str, *, retry_for: float = RETRY_FOR) -> None:
        self._uri = uri
        self._store = open_store(uri, retry_for=retry_for)

    def next_fence(self) -> int:
        """One more than the highest fence of any part; 1 where there is none."""
        return 1 + max((int(part.key.partition("-")[0]) for part in self._parts()), default=0)

    def append(self, rows: pa.Table, fence: int) -> None:
        """Writes one part. `rows` have columns of COLUMNS; those left out are null, and `time` is now."""
        self._write([_completed(rows, fence)], fence)

    def load(self, *, masks: bool = False) -> "Record":
        """The look-up over all parts, read part by part; with `masks`, 8 bytes a row more.

        Raises:
            RequestError: a part is damaged or was written by a newer version.
        """
        names = (*_LOOK_UP, "mask_hash") if masks else _LOOK_UP
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(Vanished):  # compacted meanwhile: its rows lie in a new part
                return Record(self._tables(names), names)
        raise self._unsteady()

    def keys(self, hashes: Hashes) -> Iterator[list[str]]:
        """The recorded keys with these key hashes, each once, part by part. Raises: RequestError, as `load`."""
        wanted = np.unique(hashes)
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(Vanished):
                for table in self._tables(("key", "key_hash")):
                    found, places, _ = np.intersect1d(table["key_hash"].to_numpy(), wanted, return_indices=True)
                    wanted = np.setdiff1d(wanted, found, assume_unique=True)
                    if len(places):
                        yield table["key"].take(places).to_pylist()
                    if not len(wanted):
                        break
                return
        raise self._unsteady()

    def compact(self, fence: int) -> None:
        """Merges parts below 4 MB, about 8 MB at a time, and drops rows that no longer count.

        A new part is written before the old ones are deleted, and answers the same: a crash between the two is
        harmless. Rows `removed` go only when one part is left, since they hide older rows of their keys elsewhere.
        """
        with contextlib.suppress(Vanished):  # another compaction is at it
            removed = False
            for group in _groups([part for part in self._parts() if part.size < _SMALL]):
                removed = self._merge(group, fence)
            if removed and len(left := self._parts()) == 1:
                self._merge(left, fence, drop_removed=True)

    def _merge(self, parts: Sequence[Listed], fence: int, *, drop_removed: bool = False) -> bool:
        """Replaces `parts` by one; whether it has rows `removed`.

        Holds their bytes, one decoded part, and 25 bytes a row (twice while they are sorted).
        """
        bodies = {part.key: self._store.get(part.key) for part in parts}
        names = list(bodies)
        columns = _columns((self._parse(name, bodies[name], _ORDER) for name in names), _ORDER)
        keep = np.zeros(len(columns["key_hash"]), bool)
        keep[_latest_rows(columns)] = True
        removed = keep & (columns["status"] == _REMOVED)
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

    def _parts(self) -> list[Listed]:
        return [part for page in self._store.list() for part in page if _PART.fullmatch(part.key)]

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        for part in self._parts():
            yield self._parse(part.key, self._store.get(part.key), columns)

    def _parse(self, name: str, body: bytes, columns: Sequence[str]) -> pa.Table:
        pa.default_memory_pool().release_unused()  # of the part before, which Arrow would keep
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

    def _unsteady(self) -> RequestError:
        return RequestError(f"{self._uri}: parts vanish while they are read; let no other program delete in there")


class Record:
    """The look-up: sorted key hashes, and beside each what its newest row says. Rows `removed` are not in it."""

    def __init__(self, tables: Iterable[pa.Table], names: Sequence[str]) -> None:
        columns = _columns(tables, names)
        newest = _latest_rows(columns)
        del columns["fence"], columns["time"]
        newest = newest[columns["status"][newest] != _REMOVED]
        self._columns = {name: columns.pop(name)[newest] for name in list(columns)}
        self._seen = np.zeros(len(newest), bool)
        pa.default_memory_pool().release_unused()

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(column.nbytes for column in (self._seen, *self._columns.values()))

    def outcomes(
        self,
        keys: Sequence[str],
        etags: Sequence[str],
        sizes: Sequence[int],
        fingerprint: str,
        failed_fingerprint: str,
    ) -> NDArray[np.uint8]:
        """NEW, CHANGED, ... of each object (n uint8); marks its key as seen.

        Rows `done` must match `fingerprint`, rows `failed` must match `failed_fingerprint`.
        """
        if not len(self):
            return np.full(len(keys), NEW, np.uint8)
        places, known = self._find(keys)
        self._seen[places[known]] = True
        objects = _objects(etags, sizes)
        failed = self._columns["status"][places] == _HAS_FAILED
        states = objects ^ np.array([hash64(fingerprint), hash64(failed_fingerprint)], np.uint64)[failed.astype(int)]
        changed = self._columns["object_hash"][places] != objects
        other_model = self._columns["state_hash"][places] != states
        answers = (NEW, CHANGED, MODEL_CHANGED, FAILED)
        return np.select((~known, changed, other_model, failed), answers, DONE).astype(np.uint8)

    def mask_hashes(self, keys: Sequence[str]) -> Hashes:
        """`hash64` the recorded etag of each key's mask (n uint64), 0 where none is; needs `load(masks=True)`."""
        if not len(self):
            return np.zeros(len(keys), np.uint64)
        places, known = self._find(keys)
        hashes: Hashes = np.where(known, self._columns["mask_hash"][places], np.uint64(0))
        return hashes

    def see(self, keys: Sequence[str]) -> None:
        """Marks keys as seen that are asked nothing else of."""
        if len(self) and len(keys):
            places, known = self._find(keys)
            self._seen[places[known]] = True

    def unseen(self) -> Hashes:
        """Key hashes of the rows `done` whose keys were not seen."""
        hashes: Hashes = self._columns["key_hash"][~self._seen & (self._columns["status"] == _WAS_DONE)]
        return hashes

    def _find(self, keys: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each key stands (some place, if nowhere), and whether it is there at all. Needs N > 0."""
        hashes = _hashes(keys)
        places = np.minimum(np.searchsorted(self._columns["key_hash"], hashes), len(self) - 1)
        return places, self._columns["key_hash"][places] == hashes


def hash64(*parts: str | int) -> int:
    """64 bits of BLAKE2b over the parts, joined by NUL."""
    return int.from_bytes(_digest("\0".join(map(str, parts))), "little")


def _digest(text: str) -> bytes:
    # surrogatepass: an undecodable file name has a hash as well, and no other name has the same.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _hashes(texts: Iterable[str | None]) -> Hashes:
    """`hash64` each text (n uint64); 0 of None."""
    return np.frombuffer(b"".join([bytes(8) if text is None else _digest(text) for text in texts]), "<u8")


def _objects(etags: Iterable[str], sizes: Iterable[int]) -> Hashes:
    return _hashes(map("{}\0{}".format, etags, sizes))


def _completed(rows: pa.Table, fence: int) -> pa.Table:
    """`rows` with all columns of _SCHEMA. `state_hash` is `object_hash` XOR the hash of the fingerprint."""
    columns = {name: rows[name] if name in rows.column_names else pa.nulls(len(rows), kind) for name, kind in _KINDS}
    if "time" not in rows.column_names:
        columns["time"] = np.full(len(rows), time.time())
    lists = {name: columns[name].to_pylist() for name in ("key", "etag", "size", "fingerprint", "status", "mask_etag")}
    assert set(lists["status"]) <= set(_STATUSES), "rows with an unknown status"
    objects = _objects(lists["etag"], lists["size"])
    columns |= {
        "fence": np.full(len(rows), fence, np.int64),
        "key_hash": _hashes(lists["key"]),
        "object_hash": objects,
        "state_hash": objects ^ _hashes(lists["fingerprint"]),
        "mask_hash": _hashes(lists["mask_etag"]),
    }
    return pa.table(columns, schema=_SCHEMA)


def _columns(tables: Iterable[pa.Table], names: Sequence[str]) -> Columns:
    """The columns of all tables, end to end; `status` as its place in _STATUSES (uint8)."""
    pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for table in chain([_SCHEMA.empty_table()], tables):
        for name in names:
            column = table[name]
            if name == "status":
                column = pc.index_in(column, pa.array(_STATUSES)).cast(pa.uint8())
            pieces[name].append(column.to_numpy())
    return {name: np.concatenate(pieces.pop(name)) for name in names}  # pop: no column is held twice for long


def _latest_rows(columns: Columns) -> NDArray[np.intp]:
    """Rows that count, in the order of their key hashes."""
    order = np.lexsort((columns["time"], columns["fence"], columns["key_hash"]))
    keys = columns["key_hash"][order]
    last = np.ones(len(keys), bool)
    last[:-1] = keys[1:] != keys[:-1]
    return order[last]


def _groups(parts: Sequence[Listed]) -> list[Sequence[Listed]]:
    """Runs of two parts or more, each of about _LARGE bytes at most."""
    ends = np.cumsum([part.size for part in parts])
    cuts = [0, *(np.flatnonzero(np.diff(ends // _LARGE)) + 1), len(parts)]
    return [parts[first:end] for first, end in pairwise(cuts) if end - first > 1]
