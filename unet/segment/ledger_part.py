"""The Parquet files of the ledger: their columns, and how they are read and written."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unet.segment.catalogue import CATALOGUE, shares_to_list, shares_to_struct
from unet.storage.local import translate_errors

FORMAT = 2
"""Format version of a part; parts of a newer one are refused. Those of format 1 are neither sorted nor know `outputs`
and `input`."""


def columns(*names: str) -> pa.Schema:
    """Return the schema of a table of objects."""
    numbers = {"size": pa.int64(), "fence": pa.int64(), "time": pa.float64(), "seconds": pa.float64()}
    return pa.schema([(name, numbers.get(name.removeprefix("mask_"), pa.string())) for name in names])


_IMAGE = columns("key", "etag", "size", "fingerprint", "status", "error")
_MASK = columns("mask_etag", "mask_fence", "outputs", "input", "objects")
GIVEN_COLUMNS = pa.schema([*_IMAGE, *_MASK, *CATALOGUE])
COLUMNS = pa.schema([*GIVEN_COLUMNS, *columns("time", "fence")])
"""Columns of a row. `status`: done, failed or removed; `fingerprint`: of the model and the settings that decide the
mask (done) or the failure (failed); `mask_etag`: of the mask that is there, of an earlier run if the object failed
since; `mask_fence`: of the run that wrote that mask, null where that is not known; `outputs`: what was written, with
commas; `input`: where the object lies; `time`: seconds since the epoch; `objects`: the part of object_parts.py that
holds those of the mask. The others: as in catalogue.py."""

BATCH_ROWS, GROUP_ROWS = 1024, 8192
"""Rows of a sorted run that are read at a time, and those of a row group of a part."""


class NewerFormatError(Exception):
    """A file was written by a newer version."""


def read_rows(body: bytes, size: int, places: Callable[[Sequence[str]], Sequence[int]]) -> Iterator[pa.Table]:
    """Yield the rows of a part of any format up to FORMAT, `size` at a time. `places`: of classes in `shares`.

    Raises:
        pa.ArrowException, OSError, KeyError, TypeError, ValueError: it is damaged.
        NewerFormatError: it is of another format.
    """
    file = pq.ParquetFile(pa.BufferReader(body), page_checksum_verification=True, pre_buffer=False)
    if int(file.schema_arrow.metadata[b"format"]) > FORMAT:
        raise NewerFormatError
    for batch in file.iter_batches(size):
        yield with_all_columns(shares_to_list(batch, places))


def write_rows(tables: Iterator[pa.Table], sink: Any, classes: Sequence[str]) -> None:
    """Write rows to a Parquet file, with a share of each of `classes`."""
    schema = shares_to_struct(COLUMNS.empty_table(), classes).schema.with_metadata({"format": str(FORMAT)})
    unlike = {"key", "etag", "mask_etag", "time", *CATALOGUE.names[3:]}
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=[name for name in COLUMNS.names if name not in unlike],
        use_byte_stream_split=["confidence", "unsure", *(f"shares.{name}" for name in classes)],
        column_encoding={"key": "DELTA_BYTE_ARRAY"},
        write_page_checksum=True,
    ) as writer:

        def write(rows: pa.Table) -> None:
            writer.write_table(shares_to_struct(rows, classes).cast(schema), row_group_size=GROUP_ROWS)

        waiting = COLUMNS.empty_table()
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            if len(waiting) >= GROUP_ROWS:
                write(waiting)
                waiting = COLUMNS.empty_table()
                pa.default_memory_pool().release_unused()  # which Arrow would keep
        write(waiting)


def with_all_columns(rows: pa.Table, **defaults: float) -> pa.Table:
    """Return `rows` with all columns of COLUMNS; those left out are null, or have a default."""
    columns = {name: pa.nulls(len(rows)) for name in COLUMNS.names}
    columns |= {name: pa.repeat(value, len(rows)) for name, value in defaults.items()}
    columns |= dict(zip(rows.schema.names, rows.columns, strict=True))
    return pa.table({name: columns[name] for name in COLUMNS.names}).cast(COLUMNS)


def spilled(tables: Iterable[pa.Table], path: Path) -> Iterator[pa.Table]:
    """Write sorted rows to a temporary file; return what reads them from there."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        translate_errors(str(path)),
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, COLUMNS, options=options) as writer,
    ):
        for table in tables:
            writer.write_table(table, max_chunksize=BATCH_ROWS)
    return (pa.Table.from_batches([batch]) for batch in pa.ipc.open_stream(pa.OSFile(str(path))))
