"""Every TIFF is read right to the sample, or refused by a name that says what it is."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from unet.data.channels import Channels
from unet.data.image import ImageError, open_image
from unet.data.labels import read_labels
from unet.data.mask import decode_mask
from unet.data.planes import decode_image
from unet.data.tiff import TiffPicture

SIZE = (21, 34)
"""Height and width: no multiple of a tile."""

KINDS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32", "float64")

READ = {1: set(KINDS), 3: {"uint8", "uint16"}}
"""Types of samples that are read, by the number of bands. Of signed and floating-point ones none is inverted."""


def tiff(samples: npt.NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


def samples_of(kind: str, bands: int) -> npt.NDArray[Any]:
    """Samples of the whole range of a type, of floating-point ones with fractions; HWC."""
    rng = np.random.default_rng(bands)
    if kind.startswith("float"):
        return rng.normal(0, 100, (*SIZE, bands)).astype(kind)
    limits = np.iinfo(kind)
    low, high = max(limits.min, -(1 << 31)), min(limits.max, (1 << 31) - 1)
    return rng.integers(low, high, (*SIZE, bands), dtype=np.int64, endpoint=True).astype(kind)


def grid() -> Iterator[tuple[str, bytes, npt.NDArray[Any] | None]]:
    """Yield the name of a TIFF, its bytes, and its samples, HWC, black at zero; None if it is not read."""
    for kind in KINDS:
        for bands in range(1, 6):
            samples = samples_of(kind, bands)
            for photometric in ("minisblack", "miniswhite", "rgb"):
                if photometric == "rgb" and bands < 3:
                    continue
                for planes in ("contig", "separate"):
                    for compression in (None, "lzw", "deflate"):
                        for order in "<>":
                            for layout in ({}, {"rowsperstrip": 5}, {"tile": (16, 16)}):
                                name = f"{kind} x {bands} {photometric} {planes} {compression} {order} {layout}"
                                stored = np.moveaxis(samples, -1, 0) if planes == "separate" and bands > 1 else samples
                                options: dict[str, Any] = {"planarconfig": planes} if bands > 1 else {}
                                data = tiff(
                                    stored if bands > 1 else samples[..., 0],
                                    photometric=photometric,
                                    compression=compression,
                                    byteorder=order,
                                    **options,
                                    **layout,
                                )
                                yield name, data, expected(samples, photometric)


def expected(samples: npt.NDArray[Any], photometric: str) -> npt.NDArray[Any] | None:
    kind, bands = samples.dtype.name, samples.shape[2]
    if photometric == "rgb":
        return samples[..., :3] if kind in READ[3] else None
    if photometric == "miniswhite":
        unsigned = bands == 1 and kind.startswith("uint")
        return (np.iinfo(kind).max - samples).astype(kind) if unsigned else None
    return samples if kind in READ.get(bands, ()) else None


def test_a_tiff_is_read_to_the_sample_or_refused_by_name() -> None:
    read = refused = 0
    for name, data, samples in grid():
        if samples is None:
            with pytest.raises(ImageError, match=r"is a TIFF of \d bands? of \w+"):
                decode_image(data)
            refused += 1
        elif samples.dtype.kind == "f":
            with pytest.raises(ImageError, match="floating-point"):
                decode_image(data)
            refused += 1
        else:
            picture = open_image(data)
            assert isinstance(picture, TiffPicture)
            assert np.array_equal(picture.samples().reshape(samples.shape), samples), name
            region = picture.samples((3, 4, 33, 20)).reshape(16, 30, -1)
            assert np.array_equal(region, samples[4:20, 3:33]), name
            read += 1
            if samples.dtype == np.uint8:
                assert np.array_equal(decode_image(data), np.broadcast_to(samples, (*SIZE, 3))), name
    assert (read, refused) == (648, 4032)


def test_colour_of_16_bits_is_scaled_by_the_window() -> None:
    samples = np.random.default_rng(0).integers(0, 2048, (*SIZE, 3)).astype(np.uint16)
    data = tiff(samples, photometric="rgb", planarconfig="contig", compression="deflate", tile=(16, 16))
    image = decode_image(data, Channels(windows=((0, 2047),)))
    assert np.abs(image.astype(float) - samples * (255 / 2047)).max() <= 0.5
    assert np.array_equal(decode_image(data), samples >> 8)


@pytest.mark.parametrize("kind", ["int64", "uint32", "float16", "float32", "float64"])
def test_masks_of_whole_numbers_are_read_whatever_their_type(kind: str) -> None:
    mask = np.random.default_rng(0).integers(0, 11, SIZE)
    assert np.array_equal(decode_mask(tiff(mask.astype(kind)), read_labels("camvid")), mask)
    with pytest.raises(ImageError, match=r"holds the value 0\.5" if kind.startswith("float") else "holds the value 99"):
        decode_mask(tiff(np.array([[0.5 if kind.startswith("float") else 99]], kind)), read_labels("camvid"))


def test_palette_gray_bits_and_alpha() -> None:
    gray = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)
    colormap = np.random.default_rng(1).integers(0, 65536, (3, 256), np.uint16)
    shown = decode_image(tiff(gray, photometric="palette", colormap=colormap))
    assert np.array_equal(shown, (colormap >> 8).T[gray])
    assert np.array_equal(decode_image(tiff(gray > 99, photometric="miniswhite"))[..., 0], np.where(gray > 99, 0, 255))
    both = np.stack([gray, gray], -1)
    alpha: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    assert np.array_equal(decode_image(tiff(both, **alpha))[..., 0], gray)


def test_what_a_sparse_file_leaves_out_is_its_nodata() -> None:
    data = tiff(np.full((32, 32), 7, np.uint8), tile=(16, 16), extratags=[(42113, "s", 0, "3", True)])
    page = tifffile.TiffFile(io.BytesIO(data)).pages.first
    counts = page.tags[325]
    sparse = bytearray(data)
    sparse[counts.valueoffset : counts.valueoffset + counts.valuebytecount // 4] = bytes(counts.valuebytecount // 4)
    image = decode_image(bytes(sparse))[..., 0]
    assert (image[:16, :16] == 3).all()
    assert (image[16:] == 7).all()


def test_a_truncated_tiff_is_refused() -> None:
    for options in ({}, {"compression": "lzw"}, {"compression": "deflate", "tile": (16, 16)}):
        data = tiff(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8), **options)
        page = tifffile.TiffFile(io.BytesIO(data)).pages.first
        last = page.dataoffsets[-1]
        broken = data[: last + 2] if last > page.offset else data[:last] + data[last : last + 2]
        with pytest.raises(ImageError, match=r"cannot be decoded|damaged"):
            decode_image(broken)


def test_colours_that_pillow_makes_are_still_read() -> None:
    file = io.BytesIO()
    Image.new("CMYK", (9, 5), (10, 20, 30, 40)).save(file, "TIFF")
    assert decode_image(file.getvalue()).shape == (5, 9, 3)


@pytest.mark.parametrize(
    ("options", "bits", "nodata"), [({"PHOTOMETRIC": "MINISWHITE"}, 8, 255), ({}, 4, 15), ({}, 2, 3)]
)
def test_nodata_is_the_sample_that_the_file_names_however_samples_are_brought_to_8_bits(
    tmp_path: Path, options: dict[str, str], bits: int, nodata: int
) -> None:
    rasterio = pytest.importorskip("rasterio")
    raw = np.random.default_rng(0).integers(0, 1 << bits, (1, *SIZE)).astype(np.uint8)
    size = {"height": SIZE[0], "width": SIZE[1], "count": 1, "dtype": "uint8", "nodata": nodata, "nbits": bits}
    size["transform"] = rasterio.Affine(1, 0, 9, 0, -1, 7)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **size, **options) as written:
        written.write(raw)
    data = (tmp_path / "a.tif").read_bytes()
    picture = open_image(data)
    assert isinstance(picture, TiffPicture)
    with rasterio.open(tmp_path / "a.tif") as read:
        assert ((picture.samples() == picture.nodata) == (read.read(1) == nodata)).all()


def test_a_mask_of_few_bits_holds_its_indices(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 8, SIZE).astype(np.uint8)
    rasterio, voc = pytest.importorskip("rasterio"), read_labels("voc")
    size = {"height": SIZE[0], "width": SIZE[1], "count": 1, "dtype": "uint8", "nbits": 4}
    with rasterio.open(tmp_path / "a.tif", "w", transform=rasterio.Affine(1, 0, 9, 0, -1, 7), **size) as written:
        written.write(values[None])
    assert (decode_mask((tmp_path / "a.tif").read_bytes(), voc) == voc.value_to_class[values]).all()


def test_colours_of_a_palette_may_be_of_8_bits() -> None:
    """As some programs write them, and all read them."""
    colors = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint16)
    values = np.random.default_rng(1).integers(0, 256, SIZE).astype(np.uint8)
    data = tiff(values, photometric="palette", colormap=np.ascontiguousarray(colors.T))
    assert (decode_image(data) == colors[values]).all()
