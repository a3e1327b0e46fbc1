"""Images and masks, from the bytes of a file to arrays and back.

image: HWC uint8 RGB as displayed (EXIF orientation applied). mask: HW uint8 class indices, `labels.IGNORE` where
nothing is trained or scored. Masks are only ever resampled with nearest neighbour. A file is opened once, by
`open_image` or `open_mask`; what is wanted of it is taken from the picture that this returns, Pillow's own image.
"""

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet.data import readers
from unet.data.channels import scale_to_8_bits
from unet.data.labels import IGNORE, LabelSet
from unet.data.png import without_damaged_chunks
from unet.data.provenance import to_png
from unet.data.readers import NotReadError, open_by_package
from unet.data.region import decode_region, orientation_of, show
from unet.data.tiff import MAGIC, Region, TiffPicture, UnknownTiffError, open_tiff
from unet.settings import Geometry, Window

Array = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "AVIF", "JPEG2000")
"""Pillow decoders that are ever tried, whatever a file claims to be; tifffile reads TIFF, and `readers` others."""

JPEG_START = b"\xff\xd8"

SUFFIXES: tuple[str, ...] = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
    *(".avif", ".jp2", ".j2k"),
    *readers.SUFFIXES,
)
"""What an image's name ends with, lower case."""

MAX_PIXELS = 1 << 28
"""Default limit on height x width, checked between header and decoding."""

BAND_PIXELS = 1 << 17
"""Pixels that are converted at once: few enough to stay in a processor's cache."""

Image.MAX_IMAGE_PIXELS = None  # our own limit, which is an error and not a warning, stands in for Pillow's


class ImageError(ValueError):
    """Bytes that cannot be taken as an image or a mask; the message says why, the caller knows the file."""


class DamagedError(ImageError):
    """Bytes that are no image, or not a whole one."""


class TooLargeError(ImageError):
    """Memory was too small for the image; another time there may be more."""


def open_image(data: bytes | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the first image of a file, its header read; its pixels are decoded once they are needed.

    Until then `width` and `height` are as stored: EXIF, which may turn them, can lie behind the pixels.

    Raises:
        ImageError: not an image, or larger than `max_pixels`.
    """
    return open_picture(data, max_pixels)


def load(picture: Image.Image) -> None:
    """Decode an opened image; turn `picture` itself as it is displayed, to hold no copy.

    Raises:
        ImageError: truncated or damaged.
        TooLargeError: does not fit in memory.
    """
    with decoding_errors():
        show(picture)


def to_rgb_array(picture: Image.Image, window: Window | None = None) -> Array:
    """Return the pixels of an opened image as displayed, HWC uint8 RGB; `load` it.

    16-bit samples are scaled by `window`; without one, as in PNGs in colour, they keep their high byte. Transparency is
    dropped. Raise what `load` and `check_is_rgb` do.
    """
    _prepare(picture, window)
    load(picture)
    with decoding_errors():
        image = np.empty((picture.height, picture.width, 3), np.uint8)
        for top, band in bands(picture):  # Pillow's own copy is all that is held beside the image
            image[top : top + band.height] = np.asarray(_to_rgb(band, window))
    return image


def to_rgb_picture(picture: Image.Image, window: Window | None = None, region: Region | None = None) -> Image.Image:
    """Return what `to_rgb_array` does, or a rectangle of it, as Pillow's image: what Pillow does needs no array."""
    _prepare(picture, window)
    with decoding_errors():
        inside = region is not None and region[2] <= picture.width and region[3] <= picture.height
        if region is not None and inside and orientation_of(picture) == 1:
            return _to_rgb(decode_region(picture, region), window)
    load(picture)
    with decoding_errors():
        return _to_rgb(picture if region is None else picture.crop(region), window)


def check_is_rgb(picture: Image.Image) -> None:
    """Raise ImageError for an opened image whose samples are neither gray nor colours."""
    if picture.mode == "F":
        other = isinstance(picture, TiffPicture) and picture.other
        raise ImageError(
            f"{other or 'has floating-point samples'}, and the model's input is RGB; train on its bands (--bands), or "
            "save it as gray or RGB of 8 or 16 bits"
        )


def is_deep(picture: Image.Image) -> bool:
    """Return whether an image is gray, or a TIFF in colours, of more than 8 bits, which a `Window` scales."""
    return _is_sixteen_bit(picture) or (isinstance(picture, TiffPicture) and picture.is_deep_colour)


def bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield a picture in bands of rows, each with its first row: copies of `BAND_PIXELS` and not of all."""
    height = max(1, BAND_PIXELS // picture.width)
    for top in range(0, picture.height, height):
        yield top, picture.crop((0, top, picture.width, min(top + height, picture.height)))


def resize_image(image: Array, size: tuple[int, int]) -> Array:
    """Return `image` at `size` (height, width), bilinear over the pixels that each new one covers (antialiased)."""
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    resized = np.empty((*size, image.shape[2]), np.uint8)
    for channel in range(image.shape[2]):
        band = Image.fromarray(image[..., channel])
        resized[..., channel] = np.asarray(band.resize(size[::-1], Image.Resampling.BILINEAR))
    return resized


def resize_mask(mask: Array, size: tuple[int, int]) -> Array:
    """Return `mask` at `size` (height, width), nearest neighbour."""
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def suffix_of(name: str) -> str:
    """Return what the name of an image ends with: of two dots both in what has two."""
    two = next((suffix for suffix in SUFFIXES if suffix.count(".") == 2 and name.lower().endswith(suffix)), "")
    return name[len(name) - len(two) :] if two else PurePosixPath(name).suffix


def size_within(side: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return `size` (height, width), in its proportions reduced to at most `side` pixels a side."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def preprocess_image(image: Array, geometry: Geometry) -> Array:
    """Return `image` as a model of this geometry is given it; all that follows is `network.normalise`."""
    return image if geometry.kind == "native" else resize_image(image, geometry.size)


def preprocess_mask(mask: Array, geometry: Geometry) -> Array:
    """Return `mask` resized as `preprocess_image` resizes its image."""
    return mask if geometry.kind == "native" else resize_mask(mask, geometry.size)


def overlay(image: Array, mask: Array, labels: LabelSet, *, opacity: float = 0.55) -> Array:
    """Return `mask` in the label colours over `image` (same height and width), HWC uint8 RGB."""
    return np.asarray(Image.blend(Image.fromarray(as_rgb(image)), Image.fromarray(labels.colors[mask]), opacity))


def as_rgb(image: Array) -> Array:
    """Return what is shown of an image of any number of channels, HWC: the first three, or the first as gray."""
    return (
        image if image.shape[2] == 3 else np.ascontiguousarray(image[..., [0, 1, 2] if image.shape[2] > 2 else [0] * 3])
    )


def encode_image(image: Array, kind: Literal["PNG", "JPEG"] = "PNG") -> bytes:
    """Return `image` (HWC RGB, or HW) as a PNG or JPEG file."""
    return _to_file(Image.fromarray(image), kind, **{"quality": 90} if kind == "JPEG" else {})


def encode_mask(
    mask: Array, labels: LabelSet, holes: npt.NDArray[np.bool_] | None = None, provenance: Mapping[str, str] = {}
) -> bytes:
    """Return `mask` as an indexed PNG of the labels' own values and colours, which `decode_mask` reads back.

    A class is written as the first of its labels, `IGNORE` as the first ignored label; a mask for a set without any
    must not hold it. A pixel of `holes`, HW bool, has no data: it is ignored, in a set that has such a label.
    """
    if holes is not None and any(label.ignore for label in labels.written_labels):
        mask = np.where(holes, np.uint8(IGNORE), mask)
    # Level 1 is fast, and its files are hardly larger.
    return _to_indexed_png(*mask_values(mask, labels), compress_level=1, pnginfo=to_png(provenance))


def mask_values(mask: Array, labels: LabelSet) -> tuple[Array, Array]:
    """Return the values that are written of a mask, HW uint8, and their colours, RGB by value."""
    ignored = [label.value for label in labels.written_labels if label.ignore]
    assert ignored or mask.max(initial=0) < len(labels.classes)
    values = np.full(256, ignored[0] if ignored else 0, np.uint8)
    values[: len(labels.classes)] = [label.value for label in labels.classes]
    palette = np.zeros((labels.written_labels[-1].value + 1, 3), np.uint8)
    palette[[label.value for label in labels.written_labels]] = [label.color for label in labels.written_labels]
    return values[mask], palette


def encode_indexed(values: Array, colors: Array) -> bytes:
    """Return `values` (HW) in `colors` ([256, 3], RGB by value) as a small PNG; its indices are not the values."""
    used, indices = np.unique(values, return_inverse=True)
    return _to_indexed_png(indices.reshape(values.shape).astype(np.uint8), colors[used], compress_level=9)


_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    IndexError,
    KeyError,
    TypeError,
)
"""What Pillow raises on damaged bytes, by format."""


@contextmanager
def decoding_errors() -> Iterator[None]:
    """Raise an ImageError for what Pillow raises while it decodes. What the system says of a file passes: it may be
    whole."""
    try:
        yield
    except MemoryError:
        raise TooLargeError("does not fit in memory beside the others") from None
    except ImageError:
        raise
    except _DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedError(f"cannot be decoded: {error}") from None


def open_picture(data: bytes | IO[bytes], max_pixels: int) -> Image.Image:
    """Return the first image of a file, its header read, whatever its samples are.

    Raises:
        ImageError: not an image, or larger than `max_pixels`.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    if not file.read(1):
        raise DamagedError("is empty (0 bytes)")
    file.seek(0)
    is_tiff = file.read(4) in MAGIC
    file.seek(0)
    try:
        picture = open_tiff(file) if is_tiff else open_by_package(file)
        if picture is None:
            file.seek(0)
            picture = Image.open(file, formats=FORMATS)
    except (UnknownTiffError, NotReadError) as error:
        raise ImageError(str(error)) from None
    except _DECODING_ERRORS as error:
        if (repaired := without_damaged_chunks(file)) is not None:
            return open_picture(repaired, max_pixels)
        if is_tiff:
            raise DamagedError(f"is a damaged TIFF: {error}") from None
        raise DamagedError(_why_not_opened(file)) from None
    if picture.width * picture.height > max_pixels:
        raise ImageError(f"has {picture.width} x {picture.height} pixels, more than the limit of {max_pixels}")
    return picture


def _why_not_opened(file: IO[bytes]) -> str:
    """Return what a file is that nothing opens, by how it begins, and what is wrong with it."""
    file.seek(0)
    start = file.read(16)
    Image.init()  # else formats are missing that no image before was of
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(start) is True:
            file.seek(0)
            try:
                factory(file, "")
            except _DECODING_ERRORS as error:
                return f"is a {name} file that cannot be read: {error}"
    if start.startswith(JPEG_START):
        return "is a JPEG file that cannot be read: other bytes lie behind its first two"
    return f"is not an image in one of the formats {', '.join((*FORMATS, 'TIFF', *(r.name for r in readers.READERS)))}"


def _prepare(picture: Image.Image, window: Window | None) -> None:
    check_is_rgb(picture)
    if isinstance(picture, TiffPicture):
        picture.window = window


def _to_file(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _to_indexed_png(indices: Array, palette: Array, **options: Any) -> bytes:
    picture = Image.fromarray(indices)
    picture.putpalette(np.ascontiguousarray(palette).tobytes())  # as short as may be: up to 16 colours take half a byte
    return _to_file(picture, "PNG", **options)


def _is_sixteen_bit(picture: Image.Image) -> bool:
    """Return whether an image is grayscale of more than 8 bits; Pillow gives PNGs in colour of 16 bits in 8."""
    return picture.mode.startswith("I")


def _to_rgb(picture: Image.Image, window: Window | None) -> Image.Image:
    if _is_sixteen_bit(picture):  # which convert() would clip to white
        picture = Image.fromarray(scale_to_8_bits(np.asarray(picture), window))
    elif "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
