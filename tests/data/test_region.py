"""A rectangle of a file has the pixels of the whole image, whatever way it is stored."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from tests.conftest import make_pair
from unet.data.image import open_image, to_rgb_picture
from unet.data.planes import decode_image
from unet.data.region import decode_region
from unet.data.tiff import Region

SIZE = (213, 331)
"""Height and width: no multiple of any tile or block."""

REGIONS: tuple[Region, ...] = (
    (0, 0, 1, 1),
    (0, 0, 50, 40),
    (100, 90, 181, 161),
    (64, 64, 128, 128),
    (300, 0, 331, 213),
    (0, 200, 331, 213),
    (330, 212, 331, 213),
    (0, 0, 331, 213),
)


def photo(channels: int = 3, dtype: type = np.uint8) -> npt.NDArray[Any]:
    """Smooth, with some noise; HWC, or HW of one channel."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, channels)).astype(np.uint8)
    bands = [Image.fromarray(small[..., band]).resize(SIZE[::-1], Image.Resampling.BICUBIC) for band in range(channels)]
    image = np.stack([np.asarray(band) for band in bands], -1).astype(np.int64) + rng.integers(0, 9, (*SIZE, channels))
    scaled = image.clip(0, 255) * (np.iinfo(dtype).max // 255)
    return scaled.astype(dtype).squeeze()


def assert_regions_are_those_of_the_whole(data: bytes) -> None:
    whole = open_image(data)
    whole.load()
    for region in REGIONS:
        part = decode_region(open_image(data), region)
        assert (part.mode, part.size) == (whole.mode, (region[2] - region[0], region[3] - region[1]))
        assert part.tobytes() == whole.crop(region).tobytes(), region


def tiff(image: npt.NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, **options)
    return file.getvalue()


def tiffs() -> Iterator[tuple[str, bytes]]:
    """TIFFs of all layouts that are read today, by name."""
    samples: dict[str, tuple[npt.NDArray[Any], dict[str, Any]]] = {
        "RGB": (photo(), {"photometric": "rgb"}),
        "RGBA": (photo(4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        "gray": (photo(1), {"photometric": "minisblack"}),
        "inverted": (photo(1), {"photometric": "miniswhite"}),
        "gray16": (photo(1, np.uint16), {"photometric": "minisblack"}),
        "palette": (
            photo(1),
            {"photometric": "palette", "colormap": np.random.default_rng(0).integers(0, 65536, (3, 256), np.uint16)},
        ),
    }
    layouts: dict[str, dict[str, Any]] = {
        "tiles": {"tile": (48, 64)},
        "strips": {"rowsperstrip": 7},
        "rows": {"rowsperstrip": 1},
        "one": {},
    }
    for name, (image, options) in samples.items():
        for layout, placed in layouts.items():
            for compression in (None, "deflate", "lzw", "packbits", "zstd"):
                for order in "<>":
                    data = tiff(image, byteorder=order, compression=compression, **options, **placed)
                    yield f"{name} {layout} {compression} {order}", data
            if name in ("RGB", "gray", "gray16"):
                yield f"{name} {layout} predictor", tiff(image, compression="lzw", predictor=True, **options, **placed)
            yield f"{name} {layout} big", tiff(image, bigtiff=True, **options, **placed)
    for layout, placed in layouts.items():
        if layout != "rows":
            jpeg: dict[str, Any] = {
                "compression": "jpeg",
                **placed,
                **({"rowsperstrip": 16} if layout == "strips" else {}),
            }
            yield f"JPEG {layout}", tiff(photo(), photometric="ycbcr", subsampling=(2, 2), **jpeg)
        bands = np.moveaxis(photo(), -1, 0)
        yield f"planes {layout}", tiff(bands, photometric="rgb", planarconfig="separate", **placed)
        yield f"bits {layout}", tiff(photo(1) > 128, photometric="minisblack", **placed)


def test_a_region_of_any_tiff_is_made_of_its_tiles_or_strips() -> None:
    for name, data in tiffs():
        try:
            assert_regions_are_those_of_the_whole(data)
        except Exception as error:
            raise AssertionError(name) from error


def test_group_4_fax_is_read_in_strips() -> None:
    file = io.BytesIO()
    Image.fromarray(photo(1) > 128).save(file, "TIFF", compression="group4", strip_size=500)
    assert_regions_are_those_of_the_whole(file.getvalue())


def test_tiles_beside_the_region_are_not_looked_at() -> None:
    data = tiff(photo(), tile=(48, 64), compression="deflate", photometric="rgb")
    page = tifffile.TiffFile(io.BytesIO(data)).pages.first
    damaged = bytearray(data)
    start, length = page.dataoffsets[0], page.databytecounts[0]
    damaged[start : start + length] = b"\xff" * length
    region = (64, 48, 331, 213)
    part = decode_region(open_image(bytes(damaged)), region)
    assert part.tobytes() == Image.fromarray(photo()).crop(region).tobytes()


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 5, "progressive": True},
    ],
    ids=str,
)
def test_the_first_rows_of_a_jpeg_are_those_of_the_whole(mode: str, options: dict[str, object]) -> None:
    data = saved(Image.fromarray(photo()).convert(mode), "JPEG", quality=85, **options)
    assert_regions_are_those_of_the_whole(data)
    whole = Image.open(io.BytesIO(data))
    for bottom in range(1, SIZE[0], 3):
        rows = decode_region(open_image(data), (0, 0, SIZE[1], bottom))
        assert rows.tobytes() == whole.crop((0, 0, SIZE[1], bottom)).tobytes(), bottom


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_the_first_rows_of_a_png_are_those_of_the_whole(mode: str) -> None:
    picture = Image.fromarray(photo(1, np.uint16)) if mode == "I;16" else Image.fromarray(photo()).convert(mode)
    assert_regions_are_those_of_the_whole(saved(picture, "PNG"))


@pytest.mark.parametrize("segment", [2, 20])
def test_bytes_that_fill_up_before_a_marker_of_a_jpeg_are_no_fault(segment: int) -> None:
    """`segment`: where a marker begins, the first or the one behind JFIF."""
    data = saved(Image.fromarray(photo()), "JPEG")
    assert data[segment] == 0xFF
    filled = data[:segment] + b"\xff" * 9 + data[segment:]
    assert_regions_are_those_of_the_whole(filled)
    cut = filled[: len(filled) * 2 // 3]  # so that it is decoded to the last row that is needed
    whole = Image.open(io.BytesIO(data)).crop((0, 0, 331, 20))
    assert decode_region(open_image(cut), (0, 0, 331, 20)).tobytes() == whole.tobytes()


def test_rows_below_the_region_are_not_decoded() -> None:
    for kind in ("PNG", "JPEG"):
        data = saved(Image.fromarray(photo()), kind)
        whole = Image.open(io.BytesIO(data))
        cut = data[: len(data) * 2 // 3]
        assert decode_region(open_image(cut), (0, 0, 331, 20)).tobytes() == whole.crop((0, 0, 331, 20)).tobytes()


def interlaced_png(image: npt.NDArray[np.uint8]) -> bytes:
    """HWC RGB as a PNG in the seven passes of Adam7, which Pillow cannot write."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    rows = b"".join(b"\0" + row.tobytes() for y, dy, x, dx in passes for row in image[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = (struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP", "PPM", "APNG", "interlaced"])
def test_other_files_are_decoded_whole(kind: str) -> None:
    picture = Image.fromarray(photo())
    if kind == "interlaced":
        data = interlaced_png(photo())
    elif kind == "APNG":
        data = saved(picture, "PNG", save_all=True, append_images=[picture.rotate(180)])
    else:
        data = saved(picture, kind)
    assert_regions_are_those_of_the_whole(data)


def turned(kind: str, orientation: int, *, behind: bool = False) -> bytes:
    """A file that EXIF turns; `behind`: in a chunk behind the pixels, as a PNG may have it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(make_pair(0)[0]), kind, exif=exif)
    if behind:
        start = data.index(b"eXIf") - 4
        end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
        data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    return data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "behind"), [("PNG", False), ("PNG", True), ("JPEG", False), ("TIFF", False)])
def test_a_region_is_one_of_the_image_as_displayed(kind: str, behind: bool, orientation: int) -> None:
    data = turned(kind, orientation, behind=behind)
    left, top, right, bottom = region = (5, 3, 25, 30)
    part = to_rgb_picture(open_image(data), region=region)
    assert (np.asarray(part) == decode_image(data)[top:bottom, left:right]).all()
