"""A part of a TIFF as a smaller TIFF: of the strips or tiles that a rectangle touches, the bytes unchanged.

What decodes the whole file so decodes the part, to the same pixels, whatever their compression and layout.
"""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import IO, NamedTuple

from PIL import TiffImagePlugin

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, ORIENTATION = 256, 257, 258, 259, 262, 277, 284, 274
STRIP_OFFSETS, STRIP_BYTES, STRIP_ROWS = 273, 279, 278
TILE_OFFSETS, TILE_BYTES, TILE_WIDTH, TILE_LENGTH = 324, 325, 322, 323
"""Tags, by "TIFF Revision 6.0" (Adobe, 1992)."""

KEPT = (BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, 266, 292, 293, 317, 320, 338, 339, 347, 530)
"""What says how bytes become pixels; also: FillOrder, T4Options, T6Options, Predictor, ColorMap, ExtraSamples,
SampleFormat, JPEGTables, YCbCrSubSampling."""

UNCOMPRESSED, JPEG, YCBCR, IN_PLANES = 1, 7, 6, 2
"""Values of Compression, PhotometricInterpretation and PlanarConfiguration."""

Fields = dict[int, Sequence[int] | bytes]
Span = tuple[int, int]
"""Offset and length of bytes in a file."""


class Grid(NamedTuple):
    """The strips or tiles of an image, by rows, one plane after the other."""

    span: Callable[[int], Span]
    """Where the bytes of one lie in the file, by its number."""
    width: int
    height: int
    """Of a strip or tile [pixels]."""
    across: int
    down: int
    planes: int


def part_of_tiff(
    picture: TiffImagePlugin.TiffImageFile, region: tuple[int, int, int, int]
) -> tuple[bytes, int, int] | None:
    """Return a TIFF that holds `region` (left, top, right, bottom) of `picture`, and the column and row of `picture`
    at which it begins. None where the layout is not understood, or pixels are turned, or depend on other tags."""
    tags, (width, height) = picture.tag_v2, picture.size
    jpeg_alone = tags.get(PHOTOMETRIC) == YCBCR and tags.get(COMPRESSION) != JPEG
    grid = _grid(tags, width, height)
    if grid is None or jpeg_alone or tags.get(ORIENTATION, 1) != 1 or picture.fp is None:
        return None
    columns = range(region[0] // grid.width, math.ceil(region[2] / grid.width))
    rows = range(region[1] // grid.height, math.ceil(region[3] / grid.height))
    cells = [
        (plane * grid.down + row) * grid.across + column
        for plane in range(grid.planes)
        for row in rows
        for column in columns
    ]
    left, top = columns.start * grid.width, rows.start * grid.height
    fields: Fields = {tag: _values(tags[tag]) for tag in KEPT if tag in tags}
    fields[WIDTH] = [min(width, columns.stop * grid.width) - left]
    fields[LENGTH] = [min(height, rows.stop * grid.height) - top]
    if TILE_OFFSETS in tags:
        fields |= {TILE_WIDTH: [grid.width], TILE_LENGTH: [grid.height]}
    else:
        fields[STRIP_ROWS] = [grid.height]
    return _write(tags.prefix, fields, TILE_OFFSETS in tags, _read(picture.fp, map(grid.span, cells))), left, top


def _grid(tags: TiffImagePlugin.ImageFileDirectory_v2, width: int, height: int) -> Grid | None:
    """Return the strips or tiles of an image; of an uncompressed one in strips, its rows."""
    tiled = TILE_OFFSETS in tags
    cell_width = tags.get(TILE_WIDTH, 0) if tiled else width
    cell_height = tags.get(TILE_LENGTH, 0) if tiled else min(tags.get(STRIP_ROWS, height), height)
    planes = tags.get(SAMPLES, 1) if tags.get(PLANAR, 1) == IN_PLANES else 1
    offsets = tags.get(TILE_OFFSETS if tiled else STRIP_OFFSETS, ())
    lengths = tags.get(TILE_BYTES if tiled else STRIP_BYTES, ())
    if (tiled and STRIP_OFFSETS in tags) or not cell_width or not cell_height:
        return None
    across, down = math.ceil(width / cell_width), math.ceil(height / cell_height)
    if len(offsets) != planes * across * down or len(lengths) != len(offsets):
        return None
    if tiled or planes > 1 or tags.get(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED:
        return Grid(lambda cell: (offsets[cell], lengths[cell]), cell_width, cell_height, across, down, planes)
    bits = tags.get(BITS, (1,))
    row = math.ceil(width * (sum(bits) if len(bits) > 1 else bits[0] * tags.get(SAMPLES, 1)) / 8)
    return Grid(lambda y: (offsets[y // cell_height] + y % cell_height * row, row), width, 1, 1, height, 1)


def _values(value: object) -> Sequence[int] | bytes:
    return value if isinstance(value, bytes | tuple) else [value]  # type: ignore[list-item]


def _read(file: IO[bytes], spans: Iterable[Span]) -> list[bytes]:
    read = []
    for offset, length in spans:
        file.seek(offset)
        read.append(file.read(length))
    return read


def _write(prefix: bytes, fields: Fields, tiled: bool, cells: Sequence[bytes]) -> bytes:
    """Return a TIFF of one image: the header, its strips or tiles, and the directory of its `fields`, in order of tag.

    `prefix`: II or MM, the order of the bytes of all numbers.
    """
    lengths, order = [len(cell) for cell in cells], "<" if prefix == b"II" else ">"
    places = list(accumulate(lengths[:-1], initial=8))
    fields |= {TILE_OFFSETS: places, TILE_BYTES: lengths} if tiled else {STRIP_OFFSETS: places, STRIP_BYTES: lengths}
    body = b"".join(cells)
    body += b"\0" * (len(body) % 2)  # a directory begins at an even place
    start = 8 + len(body)
    entries, values = struct.pack(f"{order}H", len(fields)), b""
    for tag, value in sorted(fields.items()):
        kind, data = (7, value) if isinstance(value, bytes) else (4, struct.pack(f"{order}{len(value)}L", *value))
        if len(data) > 4:
            place = start + 2 + 12 * len(fields) + 4 + len(values)
            data, values = struct.pack(f"{order}L", place), values + data + b"\0" * (len(data) % 2)
        entries += struct.pack(f"{order}HHL", tag, kind, len(value)) + data.ljust(4, b"\0")
    return prefix + struct.pack(f"{order}HL", 42, start) + body + entries + b"\0\0\0\0" + values
