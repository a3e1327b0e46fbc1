"""The objects of masks, in Parquet files ("parts") of one folder: each is written before the part of the ledger that
names it, and never changed.

Of a mask the objects in the part that its row of the ledger names are those that count. Others are of an earlier mask
or request, or of a run that was killed before the ledger named them. The many parts that a run writes become few when
its rows of the ledger are compacted.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from unet.data.components import COMPONENTS, MAP_POLYGONS, find_components, to_map
from unet.data.geotiff import Georeference, placement_of
from unet.data.planes import Bools
from unet.model.predictor import Prediction
from unet.storage.faults import Denied, Vanished
from unet.storage.local import translate_errors
from unet.storage.objects import Guard, no_guard
from unet.storage.store import Store

_TEXT = pa.string()
_IMAGE = [(name, _TEXT) for name in ("part", "key", "etag", "mask_etag")]
OBJECTS = pa.schema([*_IMAGE, *COMPONENTS, ("map_polygon", MAP_POLYGONS), ("crs", _TEXT)])
"""Columns of an object. `part`: the name of its file, without the suffix; `key`, `etag`: of the image; `map_polygon`,
`crs`: as `polygon`, in the coordinates of the image's georeference, and which ones these are."""

FORMAT = 1
"""Format version; parts of newer ones are left as they are."""

ROW_GROUP = 20_000
"""Rows of a row group."""

MERGED_BYTES = 1 << 30
"""Size of a part over which no other is merged into it."""

_FILE = re.compile(r"(?P<name>(?P<fence>\d{12,})-(?P<request>[0-9a-f]{16})-[0-9a-f]{16}(-merged)?)\.parquet")


class ObjectParts:
    """The parts in a store of their own; other files there are left alone. `request`: digest of what is asked for."""

    def __init__(self, store: Store, request: str) -> None:
        self.store, self.request = store, request

    def new_name(self, fence: int) -> str:
        """Return a name for a part of the run with this fence."""
        return f"{fence:012d}-{self.request}-{uuid4().hex[:16]}"

    def write(self, name: str, tables: Sequence[pa.Table], guard: Guard = no_guard) -> None:
        """Write a part of the rows of `tables`, of OBJECTS. `guard` is called before each attempt."""
        sink = pa.BufferOutputStream()
        with _writer(sink) as writer:
            writer.write_table(pa.concat_tables(tables), ROW_GROUP)
        self.store.put(f"{name}.parquet", sink.getvalue().to_pybytes(), guard=guard)

    def merge(self, names: Iterable[str], guard: Guard = no_guard) -> dict[str, str]:
        """Write parts anew, those of each run as few; return which one holds the rows of which. The ledger is to name
        the new ones. One that is gone or damaged is left out, and so are merged ones: a compaction that was killed may
        have named them, and then a row may count in either."""
        moved: dict[str, str] = {}
        small = sorted(name for name in names if not name.endswith("-merged"))
        for run, of_run in groupby(small, lambda name: name.rpartition("-")[0]):  # in which a key has objects once
            waiting = list(of_run)
            while len(waiting) > 1:
                moved |= self._merge_some(f"{run}-{uuid4().hex[:16]}-merged", waiting, guard)
        return moved

    def _merge_some(self, new: str, waiting: list[str], guard: Guard) -> dict[str, str]:
        """Merge the last of some parts, and take them from the list."""
        merged = list[str]()
        with tempfile.TemporaryDirectory(prefix="unet-objects-") as folder, translate_errors(folder):
            path = Path(folder, "part")
            with _writer(str(path)) as writer:
                while waiting and path.stat().st_size < MERGED_BYTES:
                    name = waiting.pop()
                    if (rows := self._read(name)) is not None:
                        part = pa.repeat(pa.scalar(new, _TEXT), len(rows))
                        writer.write_table(rows.set_column(0, "part", part), ROW_GROUP)
                        merged.append(name)
            if len(merged) < 2:
                return {}
            guard()
            self.store.put_file(f"{new}.parquet", path)
        return dict.fromkeys(merged, new)

    def _read(self, name: str) -> pa.Table | None:
        """Return the rows of a part; None if it is gone, damaged or of a newer version."""
        with suppress(Vanished):
            body = self.store.get(f"{name}.parquet")
            with suppress(pa.ArrowException, OSError, KeyError, TypeError, ValueError):
                rows = pq.read_table(pa.BufferReader(body), page_checksum_verification=True)
                return rows.cast(OBJECTS) if int(rows.schema.metadata[b"format"]) <= FORMAT else None
        return None

    def names(self) -> list[str]:
        """Return the names of the parts that were made on this very request."""
        return [name for name, match in self._parts() if match["request"] == self.request]

    def delete_unnamed(self, named: Set[str], fence: int, guard: Guard = no_guard) -> None:
        """Delete the parts of runs before `fence` but `named`, which are all that the ledger names."""
        self.delete([name for name, match in self._parts() if int(match["fence"]) < fence and name not in named], guard)

    def delete(self, names: Iterable[str], guard: Guard = no_guard) -> None:
        """Delete parts, as far as that is allowed: they do not count, there or not."""
        guard()
        with suppress(Denied):
            self.store.delete(f"{name}.parquet" for name in names)

    def _parts(self) -> Iterator[tuple[str, re.Match[str]]]:
        """Yield names, and what is in them."""
        for page in self.store.list():
            yield from ((match["name"], match) for item in page if (match := _FILE.fullmatch(item.key)))


def _writer(sink: Any) -> pq.ParquetWriter:
    """Return what writes a part."""
    schema = OBJECTS.with_metadata({"format": str(FORMAT)})
    return pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True)


def find_objects(
    prediction: Prediction, holes: Bools | None, georeference: Georeference, classes: Mapping[int, str], min_area: int
) -> tuple[pa.Table, int]:
    """Return the objects of `classes`, names by index, as rows of OBJECTS from `class` on, and how many are left out
    as smaller than `min_area` pixels. Raise MemoryError if their outlines are too long."""
    mask, sure = prediction.mask, prediction.confidence
    assert sure is not None
    found = [find_components(mask, sure, index, name, min_area, holes) for index, name in classes.items()]
    rows, (affine, crs) = pa.concat_tables(table for table, _ in found), placement_of(georeference)
    nowhere = pa.nulls(len(rows), MAP_POLYGONS)
    on_map = nowhere if affine is None else to_map(rows["polygon"].combine_chunks(), affine)
    rows = rows.append_column("map_polygon", on_map).append_column("crs", pa.repeat(pa.scalar(crs, _TEXT), len(rows)))
    return rows, sum(left_out for _, left_out in found)


def of_image(rows: pa.Table, row: Mapping[str, Any]) -> pa.Table:
    """Return what `find_objects` returned as rows of OBJECTS. `row`: the image's row of the ledger."""
    given = (row[name] for name in ("objects", "key", "etag", "mask_etag"))
    columns = [pa.repeat(pa.scalar(text, _TEXT), len(rows)) for text in given]
    return pa.table([*columns, *rows.columns], schema=OBJECTS)
