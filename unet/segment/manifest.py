"""The keys of a manifest: a CSV or Parquet file with a column key, which stands in for a listing."""

import csv
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from unet.segment.ledger import hash64
from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import Unreachable, Vanished
from unet.storage.listed import Listed
from unet.storage.store import Store

HEADS = 16
"""Requests at a time for the objects of a manifest."""


def manifest_keys(uri: str) -> Iterator[list[str]]:
    """The keys that a manifest names, each once, in pages.

    Raises:
        RequestError: names the manifest and what is wrong with it.
    """
    known: set[int] = set()
    for page in _pages(uri):
        fresh = []
        for key in page:
            digest = hash64(key)
            if digest not in known:
                known.add(digest)
                fresh.append(key)
        yield fresh


def _pages(uri: str) -> Iterator[list[str]]:
    try:
        data = store.read(uri)
        if uri.lower().endswith((".parquet", ".pq")):
            for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches(1000, columns=["key"]):
                yield [str(key or "") for key in batch.column("key").to_pylist()]
            return
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        if "key" not in (rows.fieldnames or ()):
            raise KeyError("key")
        page: list[str] = []
        for row in rows:
            page.append(row["key"] or "")
            if len(page) == 1000:
                yield page
                page = []
        yield page
    except Unreachable:
        raise  # says nothing of the manifest
    except OSError as error:
        raise RequestError(f"--manifest {uri}: cannot be read ({error.strerror or error})") from None
    except (KeyError, pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"--manifest {uri}: is no CSV or Parquet file with a column key ({error})") from None


def check_manifest(uri: str) -> None:
    """Reads the beginning of a manifest. Raises RequestError."""
    next(_pages(uri), None)


def head_objects(pages: Iterable[list[str]], source: Store) -> Iterator[list[Listed]]:
    """What a listing would have shown of these keys; size -1 where there is no such object."""

    def head(key: str) -> Listed:
        if source.refusal(key) is not None:  # nothing there can have such a key
            return Listed(key, -1, "")
        try:
            return source.head(key)
        except Vanished:
            return Listed(key, -1, "")

    with ThreadPoolExecutor(HEADS) as pool:
        for page in pages:
            if page:
                yield list(pool.map(head, page))
