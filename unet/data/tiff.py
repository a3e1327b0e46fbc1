"""TIFF, read by tifffile: whole, or the strips and tiles that a rectangle touches.

What is opened is an image of Pillow's, as of any other format, and of any number of bands. Pillow itself reads
TIFFs whose samples are no colours but are turned into some, as CMYK; it reads others wrongly, without a word: bands in
planes, or of more than 8 bits.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import ExifTags, Image, ImageFile

from unet.data.channels import scale_to_8_bits
from unet.settings import Window

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What a TIFF begins with, in either order of bytes, classic and BigTIFF."""

ORIENTATION, NODATA = 274, 42113
"""Tags: by "TIFF Revision 6.0" (Adobe, 1992), and by GDAL, a number as text."""

LAYOUT = (256, 257, 258, 259, 262, 277, 284)
"""Tags that say how samples lie in the file: width, height, bits, compression, meaning, number, planes."""

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
"""Values of PhotometricInterpretation."""

UNCOMPRESSED, JPEG, IN_PLANES = 1, 7, 2
"""Values of Compression, and of PlanarConfiguration."""

ALPHA = ((1,), (2,))
"""Values of ExtraSamples where there is one: associated and unassociated alpha."""

GRAY_MODES = {np.bool_: "1", np.uint8: "L", np.uint16: "I;16"}
"""Modes of Pillow's by the type of samples. Other whole numbers are I, and others F."""

MAX_CELL_PIXELS = 1 << 28
"""Of a strip or tile, however small the image is of which it is a part."""

Region = tuple[int, int, int, int]
"""Left, top, right, bottom [pixels]: whole pixels inside the image."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters of a file becomes an error


class _PillowReadsError(Exception):
    """Samples that Pillow turns into colours."""


class UnknownTiffError(ValueError):
    """A TIFF that is not read, or not as what it is asked for; the message says what it is and the remedy."""


def open_tiff(file: IO[bytes]) -> Image.Image:
    """Return the first image of a TIFF, its header read.

    Raises:
        UnknownTiffError: samples that nothing here takes for an image or a mask.
        ValueError: damaged.
    """
    try:
        return TiffPicture(file)
    except _PillowReadsError:
        return Image.open(file, formats=("TIFF",))


class TiffPicture(ImageFile.ImageFile):
    """The image of a TIFF. Its pixels are decoded once they are needed.

    To be set before: `window`, how colours of more than 8 bits become 8; gray keeps its samples. `as_stored`: gray of
    fewer than 8 bits does too, as masks need it.
    """

    format, format_description = "TIFF", "TIFF"
    window: Window | None = None
    other: str | None
    """What it is if it is neither gray nor in colours, and no mask, though its bands have samples; None if it is."""
    as_stored = False

    def _open(self) -> None:
        assert self.fp is not None
        with _tifffile_errors():
            file = tifffile.TiffFile(self.fp)
            self._page = page = file.pages.first
            _refuse_pages(file)
            if repeated := [code for code in LAYOUT if len(page.tags.getall(code) or ()) > 1]:
                raise ValueError(f"the tag {repeated[0]} is there twice")
            try:
                self.other, self._mode = None, _mode_of(page)
            except UnknownTiffError as error:
                if not _has_samples(page):
                    raise UnknownTiffError(
                        f"{error}, which is not read; save it as gray, or as RGB of 8 or 16 bits"
                    ) from None
                self.other, self._mode = str(error), "F"
            assert page.dtype is not None
            self._dtype, self._size = page.dtype, (page.imagewidth, page.imagelength)
            self._bands = {"LA": 2, "RGB": 3}.get(self._mode, 1)
            self._nodata = _number(page.tags.valueof(NODATA))
            self.getexif()[ExifTags.Base.Orientation] = page.tags.valueof(ORIENTATION, 1)
        self._loaded = False

    @property
    def is_deep_colour(self) -> bool:
        """Whether colours have more than 8 bits."""
        return self._bands > 1 and self._dtype != np.uint8

    @property
    def nodata(self) -> float | None:
        """The sample of pixels that hold no data, as `samples` has it, if the file says so."""
        number = self._nodata
        if number is not None and self._dtype.kind in "bu" and self._page.photometric == WHITE_IS_ZERO:
            number = (1 << self._page.bitspersample) - 1 - number
        return None if number is None else self._scale * number

    @property
    def _scale(self) -> int:
        """By what samples of fewer than 8 bits are multiplied."""
        few = self._dtype == np.uint8 and self._page.bitspersample < 8 and self._mode != "P" and not self.as_stored
        return 255 // ((1 << self._page.bitspersample) - 1) if few else 1

    @property
    def band_count(self) -> int:
        """Bands that the file has, alpha among them."""
        return int(self._page.samplesperpixel)

    def tags(self, codes: Sequence[int]) -> list[tifffile.TiffTag]:
        """Return the tags of these codes that there are."""
        return [self._page.tags[code] for code in codes if code in self._page.tags]

    @property
    def has_other_bands(self) -> bool:
        """Whether it has bands that are neither colours nor alpha."""
        return self.other is not None or 0 in self._page.extrasamples

    @property
    def has_alpha(self) -> bool:
        """Whether its last band is marked as alpha, and not read for display."""
        return self.other is None and tuple(self._page.extrasamples) in ALPHA

    @property
    def has_bands(self) -> bool:
        """Whether its bands say more than RGB of 8 bits or gray of 16 would."""
        return self.has_other_bands or self.is_deep_colour or self._mode == "F"

    @property
    def bytes_per_pixel(self) -> int:
        """Of the samples of all bands."""
        return self.band_count * int(self._dtype.itemsize)

    def load(self) -> Any:
        """As Pillow's."""
        if not self._loaded:
            decoded = self.decode()
            self.im, self.palette, self._mode, self._loaded = decoded.im, decoded.palette, decoded.mode, True
            self.fp = None
        return Image.Image.load(self)

    def decode(self, region: Region | None = None) -> Image.Image:
        """Return the image or a rectangle of it, as stored. Raise ValueError: damaged."""
        samples = self.samples(region)
        if self.is_deep_colour:
            samples = scale_to_8_bits(samples, self.window)
        if self._mode == "I" and samples.size and max(-int(samples.min()), int(samples.max())) >= 1 << 31:
            raise ValueError("samples of more than 32 bits")
        wanted = {"I": np.dtype(np.int32), "F": np.dtype(np.float32)}.get(self._mode, samples.dtype)
        picture = Image.fromarray(samples.astype(wanted, copy=False))
        if self._mode == "P":
            colors = np.asarray(self._page.colormap)
            colors = (colors >> (8 if colors.max(initial=0) > 255 else 0)).astype(np.uint8)  # some write 8 bits
            picture.putpalette(np.ascontiguousarray(colors.T).tobytes())
        return picture

    def samples(self, region: Region | None = None, bands: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """Return the samples of the image, or of a rectangle of it, as stored; black is zero. `bands`: numbers from 0,
        HWC; without, those that are displayed, HW or HWC.

        Gray of fewer than 8 bits is brought to 8. Raise ValueError: damaged.
        """
        page, chosen = self._page, tuple(range(self._bands) if bands is None else bands)
        left, top, right, bottom = region or (0, 0, *self.size)
        samples = np.full((bottom - top, right - left, len(chosen)), page.nodata, self._dtype)
        for x, y, places, cell in self._cells(left, top, right, bottom, chosen):
            rows = slice(max(top, y), min(bottom, y + cell.shape[0]))
            columns = slice(max(left, x), min(right, x + cell.shape[1]))
            inside = cell[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
            samples[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, places] = inside
        if page.photometric == WHITE_IS_ZERO:
            white = (1 << page.bitspersample) - 1
            samples = ~samples if page.bitspersample == 1 else (white - samples).astype(self._dtype)
        samples = samples if self._scale == 1 else samples * np.uint8(self._scale)
        return samples[..., 0] if bands is None and self._bands == 1 else samples

    def _cells(
        self, left: int, top: int, right: int, bottom: int, bands: Sequence[int]
    ) -> Iterator[tuple[int, int, slice, npt.NDArray[Any]]]:
        """Yield the strips or tiles that a rectangle touches: column and row of the image at which it begins, which of
        `bands` it holds (in planes: one), and their samples, HWC. What a sparse file leaves out is left out."""
        page, (width, height) = self._page, self.size
        cell_width, cell_height = (
            (page.tilewidth, page.tilelength) if page.is_tiled else (width, min(page.rowsperstrip, height))
        )
        if not 0 < cell_width * cell_height <= max(MAX_CELL_PIXELS, width * height):
            raise ValueError(f"tiles of {cell_width} x {cell_height} pixels")
        across, down = math.ceil(width / cell_width), math.ceil(height / cell_height)
        in_planes = page.planarconfig == IN_PLANES
        cells = across * down * (page.samplesperpixel if in_planes else 1)
        if min(len(page.dataoffsets), len(page.databytecounts)) < cells:
            raise ValueError("strips or tiles are missing")
        for place, band in enumerate(bands if in_planes else (0,)):
            places, taken = (slice(place, place + 1), slice(1)) if in_planes else (slice(None), _slice_of(bands))
            for row in range(top // cell_height, math.ceil(bottom / cell_height)):
                for column in range(left // cell_width, math.ceil(right / cell_width)):
                    number = (band * down + row) * across + column
                    if not page.databytecounts[number]:
                        continue
                    if self._rows_lie_open():
                        first, last = max(top, row * cell_height), min(bottom, (row + 1) * cell_height)
                        cell = self._open_rows(number, first - row * cell_height, last - first)
                        yield 0, first, places, cell[..., taken]
                    else:
                        data = self._read(page.dataoffsets[number], page.databytecounts[number])
                        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
                        with _tifffile_errors():
                            decoded, (_, _, y, x, _), _ = page.decode(data, number, **tables)
                        assert decoded is not None
                        yield x, y, places, decoded[0][..., taken]

    def _rows_lie_open(self) -> bool:
        """Return whether rows can be read without those before them, which matters where a strip is the whole image."""
        page = self._page
        plain = page.compression == UNCOMPRESSED and page.predictor == 1 and page.fillorder == 1
        return plain and not page.is_tiled and page.bitspersample == 8 * self._dtype.itemsize

    def _open_rows(self, strip: int, first: int, count: int) -> npt.NDArray[Any]:
        """Return `count` rows of a strip, from its row `first` on."""
        page = self._page
        bands = 1 if page.planarconfig == IN_PLANES else page.samplesperpixel
        row_bytes = self.width * bands * self._dtype.itemsize
        data = self._read(page.dataoffsets[strip] + first * row_bytes, count * row_bytes)
        return np.frombuffer(data, self._dtype.newbyteorder(page.parent.byteorder)).reshape(count, self.width, bands)

    def _read(self, offset: int, length: int) -> bytes:
        assert self.fp is not None
        self.fp.seek(offset)
        data: bytes = self.fp.read(length)
        if len(data) < length:
            raise ValueError("truncated")
        return data


def _mode_of(page: tifffile.TiffPage) -> str:
    """Return the mode of Pillow's that the samples have, RGB for colours of more bits. Raise UnknownTiffError."""
    photometric, bands, dtype, extra = page.photometric, page.samplesperpixel, page.dtype, page.extrasamples
    colours = photometric in (RGB, YCBCR) or (photometric == BLACK_IS_ZERO and bands == 3)
    as_colours = photometric in (CMYK, CIELAB) or (photometric == YCBCR and page.compression != JPEG)
    if as_colours and dtype == np.uint8 and page.planarconfig != IN_PLANES:
        raise _PillowReadsError
    if as_colours or dtype is None or isinstance(page.bitspersample, tuple) or page.imagedepth > 1:
        pass
    elif colours and (bands == 3 or len(extra) == bands - 3) and dtype in (np.uint8, np.uint16):
        if page.bitspersample >= 8:
            return "RGB"
    elif photometric == PALETTE and bands == 1 and dtype == np.uint8 and page.colormap is not None:
        return "P"
    elif photometric in (BLACK_IS_ZERO, WHITE_IS_ZERO) and (bands == 1 or (bands == 2 and extra in ALPHA)):
        if bands == 2 and dtype == np.uint8:
            return "LA"
        if bands == 1 and (dtype.kind in "ub" or (dtype.kind in "if" and photometric == BLACK_IS_ZERO)):
            return GRAY_MODES.get(dtype.type, "F" if dtype.kind == "f" else "I")
    raise UnknownTiffError(_description(page))


def _slice_of(bands: Sequence[int]) -> Any:
    """Return what takes these bands out of all, without a copy where they follow each other."""
    run = range(bands[0], bands[-1] + 1)
    return slice(run.start, run.stop) if list(bands) == list(run) else list(bands)


def _has_samples(page: tifffile.TiffPage) -> bool:
    """Return whether bands have samples, whatever they mean: numbers, of which black is zero."""
    known = page.photometric not in (CMYK, CIELAB) and (page.photometric != YCBCR or page.compression == JPEG)
    kinds = "u" if page.photometric == WHITE_IS_ZERO else "uif"
    return known and page.dtype is not None and page.dtype.kind in kinds and page.imagedepth == 1


def _refuse_pages(file: tifffile.TiffFile) -> None:
    """Raise UnknownTiffError for more images than one; smaller versions of it, and its mask, are none."""
    try:
        behind: list[Any] = file.pages[1:]
        others = sum(not (page.is_reduced or page.is_mask) for page in behind)
        stacked = int((file.imagej_metadata or {}).get("images", 1)) - 1 if file.is_imagej else 0
    except (MemoryError, OSError):
        raise
    except Exception:  # damaged behind the image, which is whole: no page can be read there
        return
    if pages := max(others, stacked):
        raise UnknownTiffError(f"is a TIFF of {pages + 1} pages, and a mask is of one; make it a file for each page")


def _number(text: Any) -> float | None:
    """Return the number in a text; None if there is none."""
    with suppress(TypeError, ValueError):
        return float(text)
    return None


def _description(page: tifffile.TiffPage) -> str:
    bands, kind = page.samplesperpixel, page.dtype or f"{page.bitspersample} bits"
    photometric = getattr(page.photometric, "name", page.photometric)
    planes = " in planes" if page.planarconfig == IN_PLANES else ""
    return f"is a TIFF of {bands} band{'s' * (bands > 1)} of {kind}{planes} ({photometric})"


@contextmanager
def _tifffile_errors() -> Iterator[None]:
    """Raise a ValueError, which says why, for whatever tifffile raises on damaged bytes; every codec has errors of its
    own. What a file that cannot be read raises passes."""
    try:
        yield
    except (_PillowReadsError, UnknownTiffError, MemoryError, OSError):
        raise
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
