"""Which program reads what: the formats that neither Pillow nor tifffile reads, each by a package of its own.

What is opened is an image of Pillow's, as of any other format; its pixels are decoded once they are needed.
"""

import gzip
import importlib
import io
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
"""Kinds of HEIF whose pictures are of HEVC (ISO/IEC 23008-12)."""

MAX_UNPACKED = 1 << 30
"""Bytes of a compressed file, unpacked."""


class NotReadError(ValueError):
    """An image that is not read; the message says what it is and the remedy."""


@dataclass(frozen=True)
class Reader:
    """How files of a kind are known and opened."""

    name: str
    suffixes: tuple[str, ...]
    package: str
    """Which must be installed; its name in Python."""
    extra: str
    """Of ours, that installs it."""
    fits: Callable[[bytes], bool]
    """Whether a file begins like this, of 352 bytes."""
    open: Callable[[IO[bytes]], Image.Image]

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return find_spec(self.package) is not None


def open_by_package(file: IO[bytes]) -> Image.Image | None:
    """Return the image of a file that one of `READERS` reads; None for any other.

    Raises:
        NotReadError: its package is not installed, or it holds no single image.
        ValueError: damaged.
    """
    file.seek(0)
    start = file.read(352)
    file.seek(0)
    for reader in READERS:
        if reader.fits(start):
            if not reader.is_installed:
                raise NotReadError(f"is {reader.name}; install unet-ray[{reader.extra}] to read it")
            with _package_errors():
                return reader.open(file)
    return None


@contextmanager
def _package_errors() -> Iterator[None]:
    """Raise a ValueError, which says why, for whatever a package raises on damaged bytes. What a file that cannot be
    read raises passes."""
    try:
        yield
    except (NotReadError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


class _DecodedLater(ImageFile.ImageFile):
    """An image of which `_open` reads mode and size, and `_decode` the pixels."""

    _is_loaded = False

    def load(self) -> Any:
        """As Pillow's."""
        if not self._is_loaded:
            with _package_errors():
                self.im = Image.fromarray(np.ascontiguousarray(self._decode())).im
            self._is_loaded, self.fp = True, None
        return Image.Image.load(self)

    @abstractmethod
    def _decode(self) -> npt.NDArray[Any]:
        """Return the pixels in the image's mode, HW or HWC."""


class DicomPicture(_DecodedLater):
    """A DICOM file of one frame: gray through its rescaling, and its first window if it has one; or RGB."""

    _has_window = False

    format = "DICOM"

    def _open(self) -> None:
        pydicom = importlib.import_module("pydicom")
        self._set = found = pydicom.dcmread(self.fp)
        if (frames := int(found.get("NumberOfFrames") or 1)) > 1:
            raise NotReadError(f"is a DICOM file of {frames} frames, and a mask is of one; make it a file for each")
        self._colours = found.PhotometricInterpretation
        if self._colours.startswith("MONOCHROME"):
            scale = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
            self._has_window = found.get("WindowCenter") not in (None, "")
            of_8_bits = found.BitsStored <= 8 and not found.PixelRepresentation and scale == (1, 0)
            whole = all(number.is_integer() for number in scale)
            self._mode = "L" if self._has_window or of_8_bits else "I" if whole else "F"
        elif self._colours in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT") and found.BitsAllocated == 8:
            self._mode = "RGB"
        else:
            raise NotReadError(f"is a DICOM file in {self._colours}, which is not read; save it as gray or RGB")
        self._size = int(found.Columns), int(found.Rows)

    def _decode(self) -> npt.NDArray[Any]:
        pixels = importlib.import_module("pydicom.pixels")
        if self._mode == "RGB":
            return np.asarray(pixels.pixel_array(self._set), np.uint8)  # which converts to RGB
        raw = pixels.pixel_array(self._set, raw=True)
        white_is_least = self._colours == "MONOCHROME1"
        if white_is_least and not self._has_window:
            raw = ~raw if self._set.PixelRepresentation else (1 << self._set.BitsStored) - 1 - raw
        samples = pixels.apply_rescale(raw, self._set)
        if self._has_window:
            samples = _in_window(np.asarray(samples, np.float32), self._set)
            samples = 255 - samples if white_is_least else samples
        return np.asarray(samples.astype({"L": np.uint8, "I": np.int32, "F": np.float32}[self._mode]))


def _in_window(samples: npt.NDArray[np.float32], found: Any) -> npt.NDArray[np.float32]:
    """Return samples as 0 to 255 through the first window (linear function, DICOM PS3.3, C.11.2.1.2.1)."""
    center, width = (float(np.atleast_1d(found[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    shown: npt.NDArray[np.float32] = ((samples - (center - 0.5)) / max(width - 1, 1e-6) + 0.5) * 255
    return shown.clip(0, 255).round()


class NiftiPicture(_DecodedLater):
    """A NIfTI file of one slice, as it is stored: its first axis runs along the rows."""

    format = "NIfTI"

    def _open(self) -> None:
        assert self.fp is not None
        data = self.fp.read()
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_UNPACKED)
        image = importlib.import_module("nibabel").Nifti1Image.from_bytes(data)
        shape = [length for place, length in enumerate(image.shape) if place < 2 or length > 1]
        if len(shape) != 2:
            lengths = " x ".join(map(str, image.shape))
            raise NotReadError(f"is a NIfTI volume of {lengths}, and a mask is of one slice; make it a file for each")
        self._samples, dtype = image.dataobj, np.dtype(image.dataobj[(0,) * len(image.shape)].dtype)
        if dtype.kind not in "uif":
            raise NotReadError(f"is a NIfTI file of {dtype}, which is not read; save it as gray")
        self._mode = "L" if dtype == np.uint8 else "F" if dtype.kind == "f" else "I"
        self._size = shape[0], shape[1]

    def _decode(self) -> npt.NDArray[Any]:
        samples = np.asarray(self._samples).reshape(self._size).T
        if self._mode == "I" and samples.size and int(np.abs(samples.astype(np.int64)).max()) >= 1 << 31:
            raise ValueError("samples of more than 32 bits")
        return samples.astype({"L": np.uint8, "I": np.int32, "F": np.float32}[self._mode])


def _open_heic(file: IO[bytes]) -> Image.Image:
    importlib.import_module("pillow_heif").register_heif_opener()
    return Image.open(file, formats=("HEIF",))


READERS = (
    Reader(
        "HEIC",
        (".heic", ".heif"),
        "pillow_heif",
        "heic",
        lambda start: start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS,
        _open_heic,
    ),
    Reader(
        "a DICOM file", (".dcm", ".dicom"), "pydicom", "dicom", lambda start: start[128:132] == b"DICM", DicomPicture
    ),
    Reader(
        "a NIfTI file",
        (".nii", ".nii.gz"),
        "nibabel",
        "nifti",
        lambda start: start[344:348] in (b"n+1\0", b"ni1\0") or start[:2] == b"\x1f\x8b",
        NiftiPicture,
    ),
)

SUFFIXES = tuple(suffix for reader in READERS if reader.is_installed for suffix in reader.suffixes)
"""What the names of images end with that can be read here, lower case."""
