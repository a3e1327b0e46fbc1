"""Objects in a mask: the connected components of a class, each with its box, area, centroid and polygon.

Coordinates are those of the grid: the pixel in column x and row y covers x to x + 1 and y to y + 1. Pixels are of one
component where they share an edge (4-connectivity): those that touch in a corner alone would make polygons that cross
themselves there. Polygons follow the edges of pixels, so that drawing them again gives the same pixels.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import ndimage

from unet.data.geotiff import Affine
from unet.data.image import Array
from unet.data.planes import Bools

BAND_PIXELS = 1 << 22
"""Pixels that are worked on at a time, beside the labels of the whole mask."""

MAX_CORNERS = 1 << 23
"""Corners of the polygons of a class in a mask, of which each takes some hundred bytes."""

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


def _polygons_of(number: pa.DataType) -> pa.DataType:
    return pa.list_(pa.list_(pa.list_(number, 2)))


COMPONENTS = pa.schema(
    [
        ("class", pa.string()),
        *((f"box_{name}", pa.int32()) for name in ("x", "y", "width", "height")),
        ("area", pa.int64()),
        ("centroid_x", pa.float64()),
        ("centroid_y", pa.float64()),
        ("confidence", pa.float32()),
        ("polygon", _polygons_of(pa.int32())),
    ]
)
"""Columns of a component. `box_x`, `box_y`: its left column and top row; `area`: pixels; `centroid_`: the mean of the
centres of its pixels; `confidence`: the mean over its pixels, 0 to 1; `polygon`: rings of points [x, y], the first one
around it, anticlockwise as displayed, the others around its holes, clockwise; each ends with its first point."""

MAP_POLYGONS = _polygons_of(pa.float64())


def find_components(
    mask: Array, confidence: Array, index: int, name: str, min_area: int = 1, holes: Bools | None = None
) -> tuple[pa.Table, int]:
    """Return the components of a class in `mask`, as rows of COMPONENTS in order of their first pixels, and how many
    are left out as smaller than `min_area` pixels.

    `confidence`: HW uint8, 255 is certain; `index`, `name`: of the class; `holes`: where there is no data.
    Raise MemoryError if their polygons have more than MAX_CORNERS corners.
    """
    labels, areas = _label(mask == index if holes is None else (mask == index) & ~holes)
    kept = areas >= min_area
    numbers = np.where(kept, np.cumsum(kept, dtype=np.int32) - 1, np.int32(-1))
    area = areas[kept]
    sums, corners = np.zeros((3, len(area))), list[_Corners]()
    above = np.full((1, mask.shape[1]), -1, np.int32)
    for top, band in _bands(labels):
        rows = np.concatenate([above, numbers[band]])
        sums += _sums(rows[1:], top, confidence[top : top + len(band)], len(area))
        corners.append(_corners_of(rows, top))
        above = rows[-1:]
        if sum(len(x) for x, *_ in corners) > MAX_CORNERS:
            remedy = f"raise --min-area, or leave {name} out of --objects"
            raise MemoryError(f"the outlines of {name} have over {MAX_CORNERS:,} corners; {remedy}")
    corners.append(_corners_of(np.concatenate([above, np.full_like(above, -1)]), len(labels)))
    del labels
    x, y, label, is_up = (np.concatenate(parts) for parts in zip(*corners, strict=True))
    boxes, polygons = _trace(x, y, label, is_up, len(area))
    centroids, means = sums[:2] / area + 0.5, sums[2] / area / 255
    columns = [pa.repeat(name, len(area)), *boxes, area, *centroids, means.astype(np.float32), polygons]
    return pa.table(columns, schema=COMPONENTS), len(areas) - 1 - len(area)


def to_map(polygons: pa.ListArray, affine: Affine) -> pa.ListArray:
    """Return polygons of the grid on the map, of MAP_POLYGONS."""
    a, b, c, d, e, f = affine
    rings = polygons.values
    x, y = rings.values.values.to_numpy().reshape(-1, 2).T
    return _nested(np.stack([a * x + b * y + c, d * x + e * y + f], 1), rings.offsets, polygons.offsets)


_Corners = tuple[Ints, Ints, Ints, Bools]
"""Of corners of polygons: x, y, number of the component, and whether the vertical edge at it goes up."""


def _bands(labels: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield bands of rows, each with the number of its first row."""
    rows = max(1, BAND_PIXELS // labels.shape[1])
    yield from ((top, labels[top : top + rows]) for top in range(0, len(labels), rows))


def _label(inside: Bools) -> tuple[Ints, npt.NDArray[np.int64]]:
    """Return the label of each pixel, 0 where it is not inside, and the area of each label, with 0 in place of that
    of label 0."""
    labels = np.empty(inside.shape, np.int32)
    count = ndimage.label(inside, output=labels)
    areas = np.zeros(count + 1, np.int64)
    for _, band in _bands(labels):
        areas += np.bincount(band.reshape(-1), minlength=count + 1)
    areas[0] = 0
    return labels, areas


def _sums(numbers: Ints, top: int, confidence: Array, count: int) -> Floats:
    """Return the sums of x, y and confidence over the pixels of each component in a band of rows, [3, count]."""
    rows, columns = np.nonzero(numbers >= 0)
    ids = numbers[rows, columns]
    values = columns, rows + top, confidence[rows, columns]
    return np.stack([np.bincount(ids, value, count) for value in values])


def _corners_of(numbers: Ints, top: int) -> _Corners:
    """Return the corners between these rows, the first of them between rows `top` - 1 and `top` of the mask. -1: in no
    component.

    Four pixels meet at a point of the grid. It is a corner where both a horizontal and a vertical edge end there. Where
    two that touch there alone are of one component, that one goes around each of the other two; where they are of two,
    each is gone around. `first` is the corner with the edge to the left, or the only one.
    """
    padded = np.pad(numbers, ((0, 0), (1, 1)), constant_values=-1)
    vertical, horizontal = padded[:, 1:] != padded[:, :-1], padded[1:] != padded[:-1]
    rows, columns = np.nonzero((vertical[1:] | vertical[:-1]) & (horizontal[:, 1:] | horizontal[:, :-1]))
    up, down = vertical[rows, columns], vertical[rows + 1, columns]
    left, right = horizontal[rows, columns], horizontal[rows, columns + 1]
    upper_left = padded[rows, columns]
    on_left = np.maximum(upper_left, padded[rows + 1, columns])
    on_right = np.maximum(padded[rows, columns + 1], padded[rows + 1, columns + 1])
    crossing = up & down & left & right
    first = np.where(crossing, on_left, np.maximum(on_left, on_right))
    first_is_up = np.where(crossing, (upper_left >= 0) ^ (on_left == on_right), up)
    x, y = columns.astype(np.int32), (rows + top).astype(np.int32)
    return (
        np.concatenate([x, x[crossing]]),
        np.concatenate([y, y[crossing]]),
        np.concatenate([first, on_right[crossing]]),
        np.concatenate([first_is_up, ~first_is_up[crossing]]),
    )


def _trace(x: Ints, y: Ints, number: Ints, is_up: Bools, count: int) -> tuple[list[Ints], pa.ListArray]:
    """Return the boxes (x, y, width, height) of `count` components, and their polygons, from all corners.

    In order of number, y and x corners 2 k and 2 k + 1 have a horizontal edge between them; in order of number, x and y
    they have a vertical one. Rings go along the two in turn. The first corner of a component is that of its outer ring.
    """
    order = np.lexsort((x, y, number))
    x, y, number, is_up = x[order], y[order], number[order], is_up[order]
    by_column = np.lexsort((~is_up, y, x, number))
    vertical = np.empty(len(x), np.intp)
    vertical[by_column[0::2]], vertical[by_column[1::2]] = by_column[1::2], by_column[0::2]
    bounds = np.searchsorted(number, np.arange(count + 1))
    first, last = bounds[:-1], bounds[1:] - 1
    left, top = x[by_column[first]], y[first]
    boxes = [left, top, x[by_column[last]] - left, y[last] - top]
    corners, ends, starts = _rings(vertical.tolist(), set(first.tolist()))
    points = np.stack([x[corners], y[corners]], 1)
    rings = np.searchsorted(number[starts], np.arange(count + 1))
    return boxes, _nested(points, pa.array(ends, pa.int32()), pa.array(rings, pa.int32()))


def _rings(vertical: list[int], first: set[int]) -> tuple[list[int], list[int], list[int]]:
    """Return the corners of all rings one after the other, where each begins and the last one ends, and the least
    corner of each. `vertical`: the other end of the vertical edge at each corner; `first`: of each component."""
    corners, ends, starts = list[int](), [0], list[int]()
    seen = bytearray(len(vertical) // 2)
    for start in range(0, len(vertical), 2):
        if seen[start >> 1]:
            continue
        point = begin = start if start in first else start ^ 1  # down or to the right: holes go the other way round
        while True:
            other = vertical[point]
            corners += (point, other)
            seen[other >> 1] = 1
            point = other ^ 1
            if point == begin:
                break
        corners.append(begin)
        ends.append(len(corners))
        starts.append(start)
    return corners, ends, starts


def _nested(points: npt.NDArray[np.generic], rings: pa.Array, polygons: pa.Array) -> pa.ListArray:
    """Return polygons of `points`, [N, 2]. `rings`, `polygons`: where each begins, and the last one ends."""
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(points.reshape(-1)), 2)
    return pa.ListArray.from_arrays(polygons, pa.ListArray.from_arrays(rings, pairs))
