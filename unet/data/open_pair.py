"""A pair of files, opened: their headers are read, their pixels are decoded when it is known which are needed.

Whatever is wrong with a file is an ImageError that names it and the remedy.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from unet.data.channels import RGB, Channels, Samples
from unet.data.image import Array, ImageError, decoding_errors, open_image
from unet.data.labels import IGNORE, LabelSet
from unet.data.layouts import Pair
from unet.data.mask import DrawnMask, open_mask, to_classes
from unet.data.planes import Bools, Planes, check_samples, decoded_pixels, read_planes
from unet.data.prefetch import prefetch
from unet.data.region import TURNS, displayed_size, orientation_of
from unet.data.settings import MaskOrientation
from unet.data.tiff import Region
from unet.storage import store
from unet.storage.faults import Unreachable

REQUESTS = 32
"""Files that are read at a time: where they lie in a bucket, one waits longer than one reads."""

FILE_BYTES = 256 << 20
"""Bytes of the files that are read ahead, at most."""


class UndecidedOrientationError(ImageError):
    """A mask may lie as its image is stored, or as it is displayed."""


@dataclass(frozen=True)
class OpenPair:
    """Image and mask, as `open_image` and `open_mask` return them."""

    pair: Pair
    image: Image.Image
    mask: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image as displayed, and of the mask. Raise ImageError: damaged."""
        with naming(self.pair.image), decoding_errors():
            return displayed_size(self.image)[::-1]

    def decode(
        self, labels: LabelSet, *, channels: Channels = RGB, region: Region | None = None
    ) -> tuple[Planes, Array]:
        """Return image and mask (HW uint8 class indices), or the same rectangle of both. A pixel without data is
        ignored."""
        if region == (0, 0, *self.size[::-1]):
            region = None
        with naming(self.pair.image):
            image = read_planes(self.image, channels, region)
        mask = self.decode_mask(labels, region)
        holes = image.holes()
        return image, mask if holes is None else np.where(holes, np.uint8(IGNORE), mask)

    def check_image(self, channels: Channels) -> tuple[Samples | None, Bools | None]:
        """Return what `check_samples` does, and let go of the image's pixels."""
        with naming(self.pair.image):
            checked = check_samples(self.image, channels)
        self.image.close()
        return checked

    def decode_mask(self, labels: LabelSet, region: Region | None = None) -> Array:
        """Return the mask as its image is displayed, or a rectangle of it.

        Raises:
            ImageError: damaged, of another size than its image, or of unknown labels.
            UndecidedOrientationError: its image is turned by EXIF, and nothing says whether the mask is turned with it.
        """
        stored = self.mask_orientation() == "stored"
        turn = TURNS.get(orientation_of(self.image)) if stored else None
        with naming(self.pair.mask):
            mask = to_classes(self.mask, labels, region if turn is None else None)
        if turn is None:
            return mask
        turned = Image.fromarray(mask).transpose(turn)
        return np.asarray(turned if region is None else turned.crop(region))

    def mask_orientation(self) -> MaskOrientation | None:
        """Return how the mask lies, or None if its image is not turned. Raise as `decode_mask`."""
        (height, width), mask, lies = self.size, self.mask.size, self.pair.mask_orientation
        orientation, displayed = orientation_of(self.image), (width, height)
        stored = (height, width) if orientation > 4 else displayed
        sizes: dict[MaskOrientation, tuple[int, int]] = {"displayed": displayed, "stored": stored}
        fitting = [lie for lie, size in sizes.items() if mask == size and lies in ("auto", lie)]
        if not fitting:
            both = f"the mask has {mask[1]} x {mask[0]} pixels, its image {self.pair.image} has {height} x {width}"
            raise ImageError(f"{self.pair.mask}: {both}; export both at one size")
        if orientation == 1:
            return None
        if len(fitting) > 1:
            raise UndecidedOrientationError(
                f"{self.pair.image}: EXIF turns it (orientation {orientation}), and nothing says whether its mask is "
                "turned with it; give --mask-orientation stored or displayed"
            )
        return fitting[0]


@dataclass(frozen=True)
class DecodedPair:
    """Image and mask (HW uint8 class indices), in place of an `OpenPair`."""

    image: Planes
    mask: Array

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.size

    def decode(
        self, labels: LabelSet, *, channels: Channels = RGB, region: Region | None = None
    ) -> tuple[Planes, Array]:
        """Return both, or the same rectangle of both; they were decoded with these labels and channels."""
        if region in (None, (0, 0, *self.size[::-1])):
            return self.image, self.mask
        left, top, right, bottom = region
        return self.image.crop(region), self.mask[top:bottom, left:right]


def open_pair(pair: Pair) -> OpenPair:
    """Return a pair, opened. Raise ImageError: names the file, what is wrong with it and the remedy."""
    (opened,) = open_pairs([pair])
    if isinstance(opened, ImageError):
        raise opened
    return opened


def open_pairs(pairs: Sequence[Pair]) -> Iterator[OpenPair | ImageError]:
    """Yield what `open_pair` returns or raises for each pair, in order; many files are read at a time."""
    files = (file for pair in pairs for file in _files_of(pair))
    opened = prefetch(_open, files, weight=lambda file: file[2], budget=FILE_BYTES, threads=REQUESTS)
    for pair, image, mask in zip(pairs, opened, opened, strict=True):
        if isinstance(image, ImageError):
            yield image
        else:
            yield mask if isinstance(mask, ImageError) else OpenPair(pair, image, mask)


def pixels_of(opened: OpenPair | ImageError, channels: Channels = RGB) -> int:
    """Return about how many pixels of RGB are decoded for what `open_pairs` yields."""
    return 0 if isinstance(opened, ImageError) else decoded_pixels(opened.image, channels)


@contextmanager
def naming(uri: str) -> Iterator[None]:
    """Raise an ImageError that names the file `uri` for what is wrong with it. Raise Unreachable, which says nothing of
    the file, as it is."""
    try:
        yield
    except ImageError as error:
        raise type(error)(f"{uri}: {error}") from None
    except Unreachable:
        raise
    except OSError as error:
        raise ImageError(f"{uri}: cannot be read ({error.strerror})") from None


File = tuple[Callable[[], Image.Image], str, int]
"""What opens a file, its URI, and its size [bytes]."""


def _files_of(pair: Pair) -> tuple[File, File]:
    """Return image and mask of a pair; shapes have been read already."""
    image: File = (lambda: open_image(store.open_file(pair.image)), pair.image, pair.sizes[0])
    if pair.drawing is not None:
        return image, (partial(DrawnMask, pair.drawing), pair.mask, 0)
    return image, (lambda: open_mask(store.open_file(pair.mask)), pair.mask, pair.sizes[1])


def _open(file: File) -> Image.Image | ImageError:
    open_picture, uri, _ = file
    try:
        with naming(uri):
            return open_picture()
    except ImageError as error:
        return error
