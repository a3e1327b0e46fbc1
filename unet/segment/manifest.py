"""Manifests: what is segmented in place of a listing, by name.

A CSV or Parquet file with a column key, a CSV of bucket and key without a heading (S3 Batch Operations), or the
manifest.json of an S3 Inventory, in CSV, Parquet or ORC. Where it has sizes and etags nothing else is asked for.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq

from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import BadCredentials, Denied, Unreachable, Vanished
from unet.storage.objects import LISTED, ObjectInfo, is_access_point, split_uri, to_table
from unet.storage.store import Store

CONCURRENT_REQUESTS = 16
"""Requests at a time for the objects of a manifest that does not say their etags."""

PAGE_SIZE = 1000
"""Objects in a page."""

NAMES = {
    "bucket": "bucket",
    "key": "key",
    "size": "size",
    "etag": "etag",
    "e_tag": "etag",
    "storageclass": "storage_class",
    "storage_class": "storage_class",
    "islatest": "is_latest",
    "is_latest": "is_latest",
    "isdeletemarker": "is_delete_marker",
    "is_delete_marker": "is_delete_marker",
}
"""Columns by what an inventory calls them, in lower case: in its list, in CSV, or in Parquet and ORC."""

WIDE = pa.schema([(field.name, pa.large_string() if field.type == pa.string() else field.type) for field in LISTED])
"""LISTED for all objects at once, whose keys may have more than 2 GiB together."""


@dataclass(frozen=True)
class Manifest:
    """The objects of `uri`, those below the folder `input` of them. `profile`: with which it is read, on S3."""

    uri: str
    input: str
    profile: str | None = None

    def pages(self, images: Store, matches: Callable[[str], bool]) -> Iterator[pa.Table]:
        """Yield the objects of which the key matches, each once, sorted by key; size -1 for one that is not there.

        Raises:
            RequestError: as `check`.
        """
        tables = [LISTED.empty_table(), *self._tables()]
        rows = pa.concat_tables(tables).cast(WIDE).combine_chunks()
        order = pc.sort_indices(rows["key"]).to_numpy()
        keys = rows["key"].take(pa.array(order))
        for start in range(0, len(rows), PAGE_SIZE):
            page = rows.take(pa.array(order[start : start + PAGE_SIZE])).cast(LISTED)
            before = keys[start - 1].as_py() if start else None
            yield from self._page(page, before, images, matches)

    def check(self) -> None:
        """Read the beginning. Raise RequestError if it cannot be read, or names objects of another bucket."""
        next(self._tables(), None)

    def knows_objects(self) -> bool:
        """Return whether it has sizes and etags, so that no object is asked for them; by its beginning."""
        first = next(self._tables(), LISTED.empty_table())
        return not (first["etag"].null_count or first["size"].null_count)

    def _page(
        self, rows: pa.Table, before: str | None, images: Store, matches: Callable[[str], bool]
    ) -> Iterator[pa.Table]:
        names = rows["key"].to_pylist()
        new = [name != last and matches(name) for name, last in zip(names, [before, *names], strict=False)]
        rows = rows.filter(pa.array(new, pa.bool_()))
        if not len(rows):
            return
        if rows["etag"].null_count or rows["size"].null_count or not self.input.startswith("s3://"):
            yield to_table(head_objects(rows["key"].to_pylist(), images))
            return
        kinds = pc.fill_null(rows["storage_class"], "STANDARD")
        yield pa.table([rows["key"], rows["size"], pc.utf8_trim(rows["etag"], '"'), kinds], schema=LISTED)

    def _tables(self) -> Iterator[pa.Table]:
        """Yield what is named, of the schema LISTED, with keys relative to the input."""
        try:
            data = store.read(self.uri, self.profile)
            if self.uri.lower().endswith(".json"):
                tables = self._inventory(json.loads(data))
            elif self.uri.lower().endswith((".parquet", ".pq")):
                tables = iter([pq.read_table(io.BytesIO(data))])
            else:
                tables = iter([_read_csv(data, split_uri(self.input)[0])])
            for table in tables:
                yield self._relative(_renamed(table))
        except Unreachable:
            raise  # a fault of the server, not of the manifest
        except RequestError:
            raise
        except OSError as error:
            raise RequestError(f"--manifest {self.uri}: cannot be read ({error.strerror or error})") from None
        except (KeyError, TypeError, ValueError, csv.Error, pa.ArrowException) as error:
            raise RequestError(
                f"--manifest {self.uri}: is no CSV or Parquet file with a column key, and no S3 Inventory ({error})"
            ) from None

    def _inventory(self, content: dict[str, Any]) -> Iterator[pa.Table]:
        """Yield the tables of the files of an inventory, which lie in the bucket that it names."""
        bucket, kind = content["destinationBucket"].rpartition(":")[2], content["fileFormat"]
        given = [name.strip() for name in content["fileSchema"].split(",")]
        for file in content["files"]:
            data = store.read(f"s3://{bucket}/{file['key']}", self.profile)
            if kind == "CSV":
                yield _read_inventory_csv(data, given)
            elif kind in ("Parquet", "ORC"):
                source = io.BytesIO(data)
                yield pq.read_table(source) if kind == "Parquet" else pyarrow.orc.ORCFile(source).read()
            else:
                raise ValueError(f"files in {kind}")

    def _relative(self, rows: pa.Table) -> pa.Table:
        """Return rows with keys relative to the input; those below another folder of its bucket are left out.

        Raises:
            RequestError: of another bucket.
        """
        bucket, prefix = split_uri(self.input) if self.input.startswith("s3://") else ("", "")
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        keys = pc.fill_null(rows["key"].cast(pa.string()), "")
        if "bucket" in rows.column_names:
            self._refuse_others(pc.unique(rows["bucket"]).to_pylist(), bucket)
        elif bucket and pc.all(pc.starts_with(keys, "s3://")).as_py() and len(keys):
            buckets = pc.list_element(pc.split_pattern(keys, "/", max_splits=3), 2)
            self._refuse_others(pc.unique(buckets).to_pylist(), bucket)
            keys = pc.utf8_slice_codeunits(keys, len(f"s3://{bucket}/"))
        else:
            prefix = ""  # they are relative to the input already
        below = pc.starts_with(keys, prefix)
        for name, wanted in (("is_latest", True), ("is_delete_marker", False)):
            if name in rows.column_names:
                below = pc.and_(below, pc.equal(pc.fill_null(rows[name].cast(pa.bool_()), wanted), wanted))
        columns = {"key": pc.utf8_slice_codeunits(keys, len(prefix))}
        for item in (field for field in LISTED if field.name != "key"):
            given = rows[item.name] if item.name in rows.column_names else pa.nulls(len(rows), item.type)
            empty = pc.equal(given.cast(pa.string()), "")
            columns[item.name] = pc.if_else(empty, None, given).cast(item.type)
        return pa.table(columns, schema=LISTED).filter(below)

    def _refuse_others(self, buckets: Sequence[str], own: str) -> None:
        if not is_access_point(own) and (others := sorted(bucket for bucket in buckets if bucket != own)):
            raise RequestError(
                f"--manifest {self.uri}: names objects of the bucket {others[0]}, not of --input {self.input}; give "
                "one of the same bucket"
            )


def _renamed(table: pa.Table) -> pa.Table:
    """Return the columns that are known, by our names."""
    known = {name: NAMES[name.lower()] for name in table.column_names if name.lower() in NAMES}
    if "key" not in known.values():
        raise KeyError("key")
    return table.select(list(known)).rename_columns(list(known.values()))


def _read_csv(data: bytes, bucket: str) -> pa.Table:
    """Return a CSV with a heading, or of bucket and key without one."""
    rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    heading = next(rows, [])
    bare = bool(bucket) and len(heading) > 1 and heading[0] == bucket
    names = ["bucket", "key"] if bare else heading
    columns: list[list[str]] = [[] for _ in names]
    for row in chain([heading] if bare else [], filter(None, rows)):
        for place, column in enumerate(columns):
            column.append(row[place] if place < len(row) else "")
    table = pa.table([pa.array(column, pa.string()) for column in columns], names=names)
    return _unquoted(table) if bare else table


def _read_inventory_csv(data: bytes, names: Sequence[str]) -> pa.Table:
    options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    reading = pyarrow.csv.ReadOptions(column_names=names)
    return _unquoted(pyarrow.csv.read_csv(io.BytesIO(gzip.decompress(data)), reading, convert_options=options))


def _unquoted(table: pa.Table) -> pa.Table:
    """Return a table whose keys are as in the bucket: in CSV they are written as in a URL."""
    place = [name.lower() for name in table.column_names].index("key")
    keys = pa.array([unquote_plus(key) for key in table.column(place).to_pylist()], pa.string())
    return table.set_column(place, "key", keys)


def head_objects(keys: list[str], images: Store) -> list[ObjectInfo]:
    """Return what a listing would show of the objects with these keys; size -1 where there is none."""

    def head(key: str) -> ObjectInfo:
        try:
            return images.head(key) if images.key_error(key) is None else ObjectInfo(key, -1, "")
        except Vanished:
            return ObjectInfo(key, -1, "")
        except BadCredentials:
            raise
        except Denied:
            return ObjectInfo(key, 1, "")  # whose worker meets that again, and makes a row of it

    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        return list(pool.map(head, keys))
