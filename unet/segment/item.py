"""An object on its way through the steps, with its decoded image and what is made of it."""

import time
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from unet.data.image import Array
from unet.segment.chunk import ROW_SCHEMA, TODO, Chunk, rows_table

STAGES = ("fetch", "decode", "predict", "write")


@dataclass
class Item:
    """An object to segment. It is settled once it has a `status`; then it holds no pixels any more."""

    key: str
    etag: str
    size: int
    reason: str | None = None
    """Why it is segmented."""
    started: float = field(default_factory=time.time)
    image: Array | None = None
    mask: Array | None = None
    confidence: Array | None = None
    status: str = ""
    error: str | None = None
    permanent: bool = False
    mask_etag: str | None = None
    seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)

    def settle(self, status: str, error: str | None = None, *, permanent: bool = False) -> "Item":
        """Set the final status, free the pixels and return the item."""
        self.status, self.error, self.permanent = status, error, permanent
        self.image = self.mask = self.confidence = None
        self.seconds = time.time() - self.started
        return self


def pop_items(chunk: Chunk) -> list[Item]:
    """Remove the rows TODO from `chunk`; return them as items."""
    todo = pc.equal(chunk.rows["status"], TODO)
    rows = chunk.rows.filter(todo).to_pylist()
    chunk.rows = chunk.rows.filter(pc.invert(todo))
    return [Item(row["key"], row["etag"], row["size"], reason=row["error"]) for row in rows]


def append_items(chunk: Chunk, items: list[Item]) -> Chunk:
    """Append the rows of settled items to `chunk`; return it."""
    rows = rows_table({name: [getattr(item, name) for item in items] for name in ROW_SCHEMA.names})
    chunk.rows = pa.concat_tables([chunk.rows, rows])
    chunk.stage_seconds = {stage: sum(item.stage_seconds.get(stage, 0.0) for item in items) for stage in STAGES}
    return chunk
