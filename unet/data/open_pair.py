"""A pair of files, opened: their headers are read, their pixels are decoded when it is known which are needed.

Whatever is wrong with a file is an ImageError that names it and the remedy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from PIL import Image

from unet.data.image import Array, ImageError, load, open_image, sixteen_bit_samples, to_rgb_picture
from unet.data.labels import LabelSet
from unet.data.layouts import Pair
from unet.data.mask import open_mask, to_classes
from unet.data.prefetch import prefetch
from unet.data.tiff import Region
from unet.data.window import Samples
from unet.settings import Window
from unet.storage import store
from unet.storage.faults import Unreachable

REQUESTS = 32
"""Files that are read at a time: where they lie in a bucket, one waits longer than one reads."""

FILE_BYTES = 256 << 20
"""Bytes of the files that are read ahead, at most."""


@dataclass(frozen=True)
class OpenPair:
    """Image and mask, as `open_image` and `open_mask` return them."""

    pair: Pair
    image: Image.Image
    mask: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the mask; its image is displayed in the same."""
        return self.mask.height, self.mask.width

    def decode(
        self, labels: LabelSet, *, window: Window | None = None, region: Region | None = None
    ) -> tuple[Image.Image, Array]:
        """Return image (Pillow's, RGB) and mask (HW uint8 class indices), or the same rectangle of both."""
        if region == (0, 0, *self.mask.size):
            region = None
        with naming(self.pair.image):
            image = to_rgb_picture(self.image, window, region)
        return image, self.decode_mask(labels, region)

    def load_image(self) -> Samples | None:
        """Decode the image and let go of its pixels; return those of a 16-bit grayscale one, HW."""
        with naming(self.pair.image):
            samples = sixteen_bit_samples(self.image)
            load(self.image)
        self.image.close()
        return samples

    def decode_mask(self, labels: LabelSet, region: Region | None = None) -> Array:
        """Return the mask; the image has been decoded. Raise ImageError, too, where it has another size."""
        with naming(self.pair.mask):
            mask = to_classes(self.mask, labels, region)
        if self.image.size != self.mask.size:
            sizes = [f"{height} x {width}" for width, height in (self.mask.size, self.image.size)]
            raise ImageError(
                f"{self.pair.mask}: the mask has {sizes[0]} pixels, its image {self.pair.image} has {sizes[1]}; "
                "export both at one size"
            )
        return mask


@dataclass(frozen=True)
class DecodedPair:
    """Image (Pillow's, RGB) and mask (HW uint8 class indices), in place of an `OpenPair`."""

    image: Image.Image
    mask: Array

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.height, self.image.width

    def decode(
        self, labels: LabelSet, *, window: Window | None = None, region: Region | None = None
    ) -> tuple[Image.Image, Array]:
        """Return both, or the same rectangle of both; they were decoded with these labels and this window."""
        if region in (None, (0, 0, *self.image.size)):
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
    files = (
        file
        for pair in pairs
        for file in ((open_image, pair.image, pair.sizes[0]), (open_mask, pair.mask, pair.sizes[1]))
    )
    opened = prefetch(_open, files, weight=lambda file: file[2], budget=FILE_BYTES, threads=REQUESTS)
    for pair, image, mask in zip(pairs, opened, opened, strict=True):
        if isinstance(image, ImageError):
            yield image
        else:
            yield mask if isinstance(mask, ImageError) else OpenPair(pair, image, mask)


def pixels_of(opened: OpenPair | ImageError) -> int:
    """Return how many pixels are decoded for what `open_pairs` yields."""
    return 0 if isinstance(opened, ImageError) else math.prod(opened.image.size)


@contextmanager
def naming(uri: str) -> Iterator[None]:
    """Raise an ImageError that names the file `uri` for what is wrong with it. Raise Unreachable, which says nothing of
    the file, as it is."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{uri}: {error}") from None
    except Unreachable:
        raise
    except OSError as error:
        raise ImageError(f"{uri}: cannot be read ({error.strerror})") from None


def _open(file: tuple[Callable[[IO[bytes]], Image.Image], str, int]) -> Image.Image | ImageError:
    open_picture, uri, _ = file
    try:
        with naming(uri):
            return open_picture(store.open_file(uri))
    except ImageError as error:
        return error
