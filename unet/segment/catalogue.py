"""The catalogue: what a mask holds, in columns of the ledger and of the report.

In memory `shares` is a list, by class index; in files it is a struct with a field for each class, as
`shares.road`, which DuckDB, pandas and Athena read.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from unet.data.image import Array

Shares = pa.list_(pa.float32())

CATALOGUE = pa.schema(
    [
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int32()),
        ("confidence", pa.float32()),
        ("unsure", pa.float32()),
        ("shares", Shares),
    ]
)
"""Height and width of the image [pixels], and its channels as the model was given them. Of the pixels with data:
`confidence`, the mean softmax probability of the mask's class; `unsure`, the share of those below a half; `shares`, the
share of each class. Null of objects without a mask, and of masks that versions before 0.2 made."""


def certainty(confidence: Array) -> tuple[float, float] | tuple[None, None]:
    """Return `confidence` and `unsure` of the pixels of a confidence map, uint8; None of no pixels."""
    if not confidence.size:
        return None, None
    mean = int(confidence.sum(dtype=np.int64)) / (255 * confidence.size)
    return mean, np.count_nonzero(confidence < 128) / confidence.size


def shares_to_struct(table: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Return `table` as it is written, with a field of `shares` for each class; without `shares` if there is none."""
    place = table.schema.get_field_index("shares")
    if not classes:
        return table.remove_column(place)
    lists = table["shares"].combine_chunks()
    missing = lists.is_null().to_numpy(zero_copy_only=False)
    values = np.zeros((len(classes), len(table)), np.float32)
    values[:, ~missing] = lists.flatten().to_numpy().reshape(-1, len(classes)).T
    mask = pa.array(missing)
    fields = [pa.array(row, mask=missing) for row in values]
    return table.set_column(place, "shares", pa.StructArray.from_arrays(fields, list(classes), mask=mask))


def shares_to_list(batch: pa.RecordBatch, classes: Sequence[str]) -> pa.Table:
    """Return the rows of a file as they are in memory. Shares of other classes than `classes` are null."""
    table = pa.Table.from_batches([batch])
    place = table.schema.get_field_index("shares")
    if place < 0:
        return table
    kind, shares = table.schema.field(place).type, pa.nulls(len(table), Shares)
    if [kind.field(index).name for index in range(kind.num_fields)] == list(classes):
        column = table["shares"].combine_chunks()
        values = np.stack([field.fill_null(0).to_numpy() for field in column.flatten()], axis=1)
        starts = pa.array(np.arange(0, values.size + 1, len(classes), dtype=np.int32))
        shares = pa.ListArray.from_arrays(starts, pa.array(values.reshape(-1)), Shares, mask=column.is_null())
    return table.set_column(place, "shares", shares)
