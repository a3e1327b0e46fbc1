"""Manifests: CSV or Parquet files with a column key, whose objects are segmented in place of those of a listing."""

import csv
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import Unreachable, Vanished
from unet.storage.objects import ObjectInfo
from unet.storage.store import Store

CONCURRENT_REQUESTS = 16
"""Requests at a time for the objects of a manifest."""

PAGE_SIZE = 1000
"""Keys in a page."""


def manifest_keys(uri: str) -> Iterator[list[str]]:
    """Yield the keys of a manifest, each once, sorted, in pages. Raise as `manifest_pages`."""
    keys = pc.unique(pa.chunked_array([pa.array([], pa.string()), *map(pa.array, manifest_pages(uri))]))
    keys = keys.take(pc.sort_indices(keys))
    for start in range(0, len(keys), PAGE_SIZE):
        yield keys.slice(start, PAGE_SIZE).to_pylist()


def manifest_pages(uri: str) -> Iterator[list[str]]:
    """Yield the keys of a manifest as they come, in pages. Raise RequestError if it cannot be read."""
    try:
        data = store.read(uri)
        if uri.lower().endswith((".parquet", ".pq")):
            for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches(PAGE_SIZE, columns=["key"]):
                yield [str(key or "") for key in batch.column("key").to_pylist()]
            return
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        if "key" not in (rows.fieldnames or ()):
            raise KeyError("key")
        keys = (row["key"] or "" for row in rows)
        while page := list(islice(keys, PAGE_SIZE)):
            yield page
    except Unreachable:
        raise  # a fault of the server, not of the manifest
    except OSError as error:
        raise RequestError(f"--manifest {uri}: cannot be read ({error.strerror or error})") from None
    except (KeyError, pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"--manifest {uri}: is no CSV or Parquet file with a column key ({error})") from None


def head_objects(keys: list[str], images: Store) -> list[ObjectInfo]:
    """Return what a listing would show of the objects with these keys; size -1 where there is none."""

    def head(key: str) -> ObjectInfo:
        with suppress(Vanished):
            if images.key_error(key) is None:
                return images.head(key)
        return ObjectInfo(key, -1, "")

    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        return list(pool.map(head, keys))
