"""The catalogue: what a mask holds, in columns of the ledger and of the report.

In memory `shares` is a list, by the place of a class among known names; in files it is a struct with a field for each
class, as `shares.road`, which DuckDB, pandas and Athena read. Masks of models with other classes may stand in one file:
a share is null of a class that the model of the mask does not know, and a list ends where no other class is known.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unet.data.image import Array

Share = pa.float32()
Shares = pa.list_(Share)

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
    padded = pc.list_slice(lists, 0, len(classes), return_fixed_size_list=True)
    values = padded.values.to_numpy(zero_copy_only=False).reshape(-1, len(classes))  # NaN for null
    fields = [pa.array(column, Share, from_pandas=True) for column in values.T]
    return table.set_column(place, "shares", pa.StructArray.from_arrays(fields, list(classes), mask=lists.is_null()))


def shares_to_list(batch: pa.RecordBatch, places: Callable[[Sequence[str]], Sequence[int]]) -> pa.Table:
    """Return the rows of a file as they are in memory. `places`: of classes, by their names."""
    table = pa.Table.from_batches([batch])
    place = table.schema.get_field_index("shares")
    if place < 0:
        return table
    column = table["shares"].combine_chunks()
    names = (column.type.field(index).name for index in range(column.type.num_fields))
    known = {name: field for name, field in zip(names, column.flatten(), strict=True) if field.null_count < len(field)}
    at = places(list(known))
    values = np.full((len(table), max(at, default=-1) + 1), np.nan, np.float32)
    for index, field in zip(at, known.values(), strict=True):
        values[:, index] = field.to_numpy(zero_copy_only=False)
    starts = pa.array(np.arange(len(table) + 1, dtype=np.int32) * np.int32(values.shape[1]))
    flat = pa.array(values.reshape(-1), Share, from_pandas=True)
    return table.set_column(place, "shares", pa.ListArray.from_arrays(starts, flat, Shares, mask=column.is_null()))
