"""A rectangle of a large image, for which no more of its file is decoded than the format demands.

Its pixels are those of the whole image. Of a TIFF the strips or tiles are decoded that the rectangle touches, of JPEG
and PNG the rows down to the last one that is needed; other files whole.
"""

import io
import struct
from typing import IO, Any

from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, PngImagePlugin

from unet.data.tiff import Region, TiffPicture

ORIENTATION = "orientation"
"""Key of an image's `info`, from when it is shown on: the EXIF orientation that it had."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of an EXIF orientation to how it is displayed."""

BLOCK_ROWS = 32
"""A row of blocks in a JPEG has 32 rows of pixels at most; where chroma is enlarged, the next row of blocks counts."""


def decode_region(picture: Image.Image, region: Region) -> Image.Image:
    """Return a rectangle of an opened picture as stored, of a shown one as shown. Raise what Pillow does on damaged
    bytes."""
    if ORIENTATION in picture.info:
        return picture.crop(region)
    if isinstance(picture, TiffPicture):
        return picture.decode(region)
    if isinstance(picture, JpegImagePlugin.JpegImageFile):
        picture = _first_rows_of_jpeg(picture, region[3])
    elif isinstance(picture, PngImagePlugin.PngImageFile):
        picture = _first_rows_of_png(picture, region[3])
    return picture.crop(region)


def orientation_of(picture: Image.Image) -> int:
    """Return the EXIF orientation of an image, opened, 1 to 8; a PNG is decoded for it if it may lie behind its pixels.

    Raise what Pillow does on damaged bytes.
    """
    if ORIENTATION not in picture.info:
        if isinstance(picture, PngImagePlugin.PngImageFile) and _has_exif_behind_pixels(picture.fp):
            show(picture)
        else:
            forget_other_orientations(picture)
            exif = Image.Image.getexif(picture)  # a PNG's own method would decode it
            return _known(exif.get(ExifTags.Base.Orientation))
    return _known(picture.info[ORIENTATION])


def _known(orientation: Any) -> int:
    """Return an orientation; 1, as other programs take it, for what is none."""
    return int(orientation) if orientation in range(1, 9) else 1


def show(picture: Image.Image) -> None:
    """Decode an image, opened, and turn it as it is displayed. Raise what Pillow does on damaged bytes."""
    picture.load()
    forget_other_orientations(picture)
    picture.info.setdefault(ORIENTATION, picture.getexif().get(ExifTags.Base.Orientation, 1))
    ImageOps.exif_transpose(picture, in_place=True)


def displayed_size(picture: Image.Image) -> tuple[int, int]:
    """Return width and height of an image, opened or shown, as it is displayed. Raise what Pillow does."""
    turned = orientation_of(picture) > 4 and ORIENTATION not in picture.info
    return (picture.height, picture.width) if turned else picture.size


def forget_other_orientations(picture: Image.Image) -> None:
    """Drop what Pillow would take an orientation from where EXIF has none, and other programs do not: XMP, and EXIF as
    text in a PNG of ImageMagick's."""
    dropped = [picture.info.pop(key, None) for key in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")]
    if any(dropped) and "exif" in picture.info:  # which Pillow may have read beside them
        own, read = Image.Exif(), Image.Image.getexif(picture)
        own.load(picture.info["exif"])
        if ExifTags.Base.Orientation in read and ExifTags.Base.Orientation not in own:
            del read[ExifTags.Base.Orientation]


def _first_rows_of_jpeg(picture: JpegImagePlugin.JpegImageFile, rows: int) -> Image.Image:
    """Return what ends soon after the first `rows`: a copy of the file whose header gives it that height."""
    assert picture.fp is not None
    picture.fp.seek(0)
    data = bytearray(picture.fp.read())
    place = _place_of_height(data)
    if place is None or rows + 2 * BLOCK_ROWS >= picture.height:
        return picture
    struct.pack_into(">H", data, place, rows + 2 * BLOCK_ROWS)
    return Image.open(io.BytesIO(data), formats=("JPEG",))


def _place_of_height(data: bytearray) -> int | None:
    """Return where a JPEG says its height, in the frame header behind the bits of a sample; None if it is not found."""
    place = 2
    while place + 7 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return place + 5
        # A marker may be preceded by bytes that fill up; else the length of its segment follows.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4])
    return None


class _UnendedPNG(PngImagePlugin.PngImageFile):
    """A PNG of which the end is not read."""

    def load_end(self) -> None:
        pass


def _first_rows_of_png(picture: PngImagePlugin.PngImageFile, rows: int) -> Image.Image:
    """Return `picture`, or one that ends with its first `rows`."""
    assert picture.fp is not None
    if picture.info.get("interlace") or picture.is_animated or len(picture.tile) != 1:
        return picture
    picture.fp.seek(0)
    first = _UnendedPNG(picture.fp)
    first._size = (picture.width, rows)
    first.tile = [first.tile[0]._replace(extents=(0, 0, picture.width, rows))]
    return first


def _has_exif_behind_pixels(file: IO[bytes] | None) -> bool:
    """Return whether a PNG has a chunk behind its pixels from which Pillow takes EXIF."""
    place, behind = 8, False
    while file is not None:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        if kind in (b"IEND", b"\0\0\0\0"):
            break
        if behind and kind == b"eXIf":
            return True
        behind |= kind == b"IDAT"
        place += 12 + length
    return False
