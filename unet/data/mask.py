"""Masks, from the samples of a file to class indices: HW uint8, `labels.IGNORE` where nothing is trained or scored.

A sample is looked up in a table, a band of rows at a time; what no label has ends in an ImageError with the remedy.
"""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet.data.image import MAX_PIXELS, Array, ImageError, bands, decoding_errors, open_picture
from unet.data.labels import IGNORE, INVALID, LabelSet, built_in_labels
from unet.data.png import is_deep_colour
from unet.data.region import decode_region
from unet.data.shapes import Drawing, ShapeError, read_labelme
from unet.data.tiff import Region, TiffPicture


class DrawnMask(Image.Image):
    """A mask given as shapes, which is drawn when its classes are asked for."""

    def __init__(self, drawing: Drawing) -> None:
        super().__init__()
        self.drawing, self._size, self._mode = drawing, (drawing.width, drawing.height), "L"


def open_mask(data: bytes | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a mask file as `open_image` does; also one of shapes, of labelme.

    Raises:
        ImageError: not a mask, or larger than `max_pixels`.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    if file.read(1) == b"{":
        file.seek(0)
        try:
            return DrawnMask(read_labelme(file.read()))
        except ShapeError as error:
            raise ImageError(str(error)) from None
    file.seek(0)
    picture = open_picture(file, max_pixels)
    if isinstance(picture, TiffPicture):
        picture.as_stored = True
    if picture.format == "JPEG":
        raise ImageError("is a JPEG, whose compression invents labels; save masks as PNG")
    if isinstance(picture, TiffPicture) and picture.other is not None:
        raise ImageError(f"{picture.other}; a mask is an index, palette or RGB image")
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16B", "F"):
        raise ImageError(f"has mode {picture.mode}; a mask is an index, palette or RGB image")
    if picture.is_deep_colour if isinstance(picture, TiffPicture) else is_deep_colour(picture, or_alpha=True):
        raise ImageError("has colours of 16 bits, of which labels have 8; save it with 8, or its index as gray")
    return picture


def to_classes(picture: Image.Image, labels: LabelSet, region: Region | None = None) -> Array:
    """Return the class indices, HW uint8, of an opened index, palette or RGB colour mask, or of a rectangle of it.

    Raises:
        ImageError: truncated or damaged, or it holds values or colours that `labels` does not know.
    """
    if isinstance(picture, DrawnMask):
        return _draw(picture.drawing, labels, region)
    whole, nodata = region is None, _nodata_of(picture, labels)
    with decoding_errors():
        if region is not None and (picture.mode != "P" or _palette_agrees(picture, labels)):
            picture, region = decode_region(picture, region), None
        picture.load()
    if whole and picture.mode in ("LA", "RGBA"):
        _refuse_alpha(picture)
    look_up = _look_up(picture, labels)
    if region is not None:
        picture = picture.crop(region)
    mask = np.empty((picture.height, picture.width), np.uint8)
    for top, band in bands(picture):
        classes = look_up(band, labels)
        if nodata is not None:
            classes = np.where(_samples(band) == nodata, np.uint8(IGNORE), classes)
        mask[top : top + band.height] = classes
    if (mask == INVALID).any():
        raise ImageError(_unknown_in(picture, labels))
    return mask


def _nodata_of(picture: Image.Image, labels: LabelSet) -> float | None:
    """Return the value of pixels that hold no data, where a TIFF says it; None if it is that of a label."""
    nodata = picture.nodata if isinstance(picture, TiffPicture) and not picture.mode.startswith("RGB") else None
    return None if nodata is None or nodata in {label.value for label in labels.labels} else nodata


def is_read_by_colors(picture: Image.Image, labels: LabelSet) -> bool:
    """Return whether the classes of a mask, decoded, follow from its colours, but for those of pixels without data.

    They do in RGB, and where all colours used of a palette are the labels' own, but at other indices: a program that
    reduces colours orders palettes by frequency. A palette of grays in their order says nothing.
    """
    if picture.mode != "P":
        return picture.mode.startswith("RGB")
    palette, used = _palette_of(picture), np.flatnonzero(picture.histogram()[:256])
    if (nodata := _nodata_of(picture, labels)) is not None:
        used = used[used != nodata]
    if not len(used) or used.max() >= len(palette) or (palette[used] == used[:, None]).all():
        return False
    classes = _color_to_class(labels)[_numbers_of(palette[used])]
    return bool((classes != INVALID).all() and (classes != labels.value_to_class[used]).any())


def decode_mask(data: bytes, labels: LabelSet) -> Array:
    """Return a mask file as `to_classes` does, and raise what it and `open_mask` raise."""
    return to_classes(open_mask(data), labels)


def _draw(drawing: Drawing, labels: LabelSet, region: Region | None) -> Array:
    try:
        mask = drawing.draw(labels)
    except ShapeError as error:
        raise ImageError(str(error)) from None
    left, top, right, bottom = region or (0, 0, drawing.width, drawing.height)
    return mask[top:bottom, left:right]


def _refuse_alpha(picture: Image.Image) -> None:
    """Raise ImageError for a mask of one colour whose alpha, which is dropped, has several values."""
    *colors, alpha = np.array(picture.getextrema())
    if alpha[0] != alpha[1] and all(low == high for low, high in colors):
        raise ImageError("is one colour under an alpha channel that holds the mask; save that channel as grayscale")


def _look_up(picture: Image.Image, labels: LabelSet) -> Callable[[Image.Image, LabelSet], Array]:
    """Return what finds the classes of a band of a mask, decoded."""
    if picture.mode == "P" and is_read_by_colors(picture, labels):
        return lambda band, labels: _classes_of_colors(band.convert("RGB"), labels)
    return _classes_of_colors if picture.mode.startswith("RGB") else _classes_of_values


def _palette_agrees(picture: Image.Image, labels: LabelSet) -> bool:
    """Return whether no colour in the palette of a mask, opened, is that of another label than its index."""
    if picture.palette is None:
        return False
    palette = _palette_of(picture)
    classes = _color_to_class(labels)[_numbers_of(palette)]
    return bool(((classes == INVALID) | (classes == labels.value_to_class[: len(palette)])).all())


def _palette_of(picture: Image.Image) -> Array:
    """Return the colours of a palette, [N, 3]."""
    assert picture.palette is not None
    mode = picture.palette.rawmode or picture.palette.mode
    colors = np.frombuffer(bytes(picture.palette.palette), np.uint8).reshape(-1, len(mode))
    return colors[:, [mode.index(channel) for channel in "RGB"]]


def _samples(band: Image.Image) -> npt.NDArray[Any]:
    """Return the values of a band of a mask, HW, or its colours as numbers of 24 bits; alpha is dropped."""
    if band.mode.startswith("RGB"):
        packed = (band if band.mode == "RGB" else band.convert("RGB")).tobytes("raw", "BGRX")
        return np.frombuffer(packed, "<u4").reshape(band.height, band.width)
    return np.asarray(band.convert("L") if band.mode == "LA" else band)


def _classes_of_values(band: Image.Image, labels: LabelSet) -> Array:
    """Return the classes of a band of an index mask, `INVALID` for values of no label."""
    values = _samples(band)
    if values.dtype.itemsize == 1:
        return labels.value_to_class[values.view(np.uint8)]
    known = (values >= 0) & (values <= 255) & (values == np.trunc(values))  # not NaN
    return np.where(known, labels.value_to_class[np.where(known, values, 0).astype(np.uint8)], np.uint8(INVALID))


def _classes_of_colors(band: Image.Image, labels: LabelSet) -> Array:
    """Return the classes of a band of a colour mask, `INVALID` for colours of no label."""
    classes: Array = _color_to_class(labels)[_samples(band)]
    return classes


@lru_cache(maxsize=1)
def _color_to_class(labels: LabelSet) -> Array:
    """Return a table of the class of each colour, [2 ** 24]: 16 MB, of which a mask touches a line for each colour."""
    table = np.full(1 << 24, INVALID, np.uint8)
    for label in labels.labels:
        table[_number_of(label.color)] = labels.value_to_class[label.value]
    return table


def _number_of(color: tuple[int, ...]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _numbers_of(colors: Array) -> npt.NDArray[np.uint32]:
    return colors.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def _unknown_in(picture: Image.Image, labels: LabelSet) -> str:
    """Return what is wrong with a mask that holds a value or colour of no label."""
    present = np.unique(np.concatenate([np.unique(_samples(band)) for _, band in bands(picture)]))
    if not picture.mode.startswith("RGB"):
        return _unknown_values(present, labels)
    known = {_number_of(label.color) for label in labels.labels}
    number = next(number for number in present.tolist() if number not in known)
    return _unknown_color((number >> 16, number >> 8 & 255, number & 255), labels)


_BINARY_REMEDY = (
    "a binary mask holds 0 and 255, or 0 and 1; threshold it, or say with --classes what its values mean, in place of "
    "--binary"
)


def _unknown_values(present: npt.NDArray[np.generic], labels: LabelSet) -> str:
    known = sorted(label.value for label in labels.labels)
    if set(present.tolist()) <= {0, 255} and len(labels.classes) == 2:
        return (
            f"is a 0/255 mask, but the label set has the indices {known}; "
            "give the foreground the index 255 in the label file, or --binary in place of --classes"
        )
    unknown = [value for value in present.tolist() if value not in known]
    listed = ", ".join(f"{value:.10g}" for value in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    if labels == built_in_labels("binary"):
        return f"holds the value {listed}, and {_BINARY_REMEDY}"
    return (
        f"holds the value {listed}, which the label set (indices {known[0]} to {known[-1]}) lacks; "
        "add it to the label file (marked ignore, if it is no class) or mend the mask"
    )


def _unknown_color(color: tuple[int, int, int], labels: LabelSet) -> str:
    if len(set(color)) == 1 and labels.value_to_class[color[0]] != INVALID:
        return (
            f"holds the colour {color}, which no label has, but there is a label with the index {color[0]}: "
            "it looks like an index mask saved as RGB; save its first channel alone"
        )
    if labels == built_in_labels("binary"):
        return f"holds the colour {color}, and {_BINARY_REMEDY}"
    return f"holds the colour {color}, which no label has; add it to the label file or mend the mask"
