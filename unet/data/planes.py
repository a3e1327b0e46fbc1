"""An image as planes: Pillow's own image in RGB, or one in gray for each band. From a file, and as an array.

What augmentation does to images, Pillow does to each plane.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet.data.channels import RGB, WITHOUT_DATA, Channels, Samples, kind_of, scale_to_8_bits
from unet.data.image import (
    Array,
    ImageError,
    as_rgb,
    check_is_rgb,
    decoding_errors,
    is_deep,
    load,
    open_image,
    to_rgb_array,
    to_rgb_picture,
)
from unet.data.png import is_deep_colour, sixteen_bit_samples
from unet.data.region import TURNS, decode_region, orientation_of
from unet.data.tiff import Region, TiffPicture

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Planes:
    """`images`: one in mode RGB, or one in mode L for each channel, of one size."""

    images: tuple[Image.Image, ...]
    no_data: Image.Image | None = None
    """In mode L, not 0 where there is no data."""

    @classmethod
    def of(cls, image: Array) -> "Planes":
        """Return the planes of an image, HWC uint8."""
        if image.shape[2] == 3:
            return cls((Image.fromarray(image),))
        return cls(tuple(Image.fromarray(image[..., channel]) for channel in range(image.shape[2])))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images[0].height, self.images[0].width

    def crop(self, region: Region) -> "Planes":
        """Return a rectangle."""
        no_data = None if self.no_data is None else self.no_data.crop(region)
        return Planes(tuple(image.crop(region) for image in self.images), no_data)

    def turn(self, turn: Image.Transpose) -> "Planes":
        """Return the image turned or mirrored."""
        no_data = None if self.no_data is None else self.no_data.transpose(turn)
        return Planes(tuple(image.transpose(turn) for image in self.images), no_data)

    def to_array(self) -> Array:
        """Return the image, HWC uint8."""
        return join_planes(self.images)

    def holes(self) -> Bools | None:
        """Return where there is no data, HW; None if there is data everywhere."""
        return None if self.no_data is None else np.asarray(self.no_data) > 0


def join_planes(images: tuple[Image.Image, ...]) -> Array:
    """Return images as in `Planes` as an array, HWC uint8."""
    if images[0].mode == "RGB":
        return np.asarray(images[0])
    return np.stack([np.asarray(image) for image in images], axis=-1)


def read_planes(picture: Image.Image, channels: Channels = RGB, region: Region | None = None) -> Planes:
    """Return an opened image, or a rectangle of it, as displayed.

    Raises:
        ImageError: damaged, too large for memory, or without the bands or the samples that the channels are of.
    """
    if channels.bands is None and _nodata_of(picture, channels) is None:
        return Planes((to_rgb_picture(picture, channels.window, region),))
    if channels.bands is None:
        check_is_rgb(picture)
    turn = _turn_of(picture, channels)
    planes = _scaled(read_samples(picture, channels, region if turn is None else None), picture, channels)
    if turn is None:
        return planes
    planes = planes.turn(turn)
    return planes if region is None else planes.crop(region)


def read_array(picture: Image.Image, channels: Channels = RGB) -> tuple[Array, Bools | None]:
    """Return an opened image as displayed, HWC uint8, and where it holds no data, HW, if anywhere.

    Raises:
        ImageError: as `read_planes`.
    """
    if channels.bands is None and _nodata_of(picture, channels) is None:
        return to_rgb_array(picture, channels.window), None  # which holds less memory meanwhile
    planes = read_planes(picture, channels)
    return planes.to_array(), planes.holes()


def decode_image(data: bytes, channels: Channels = RGB) -> Array:
    """Return an image file, HWC uint8. Raise what `open_image` and `read_planes` do."""
    return read_array(open_image(data), channels)[0]


def read_samples(picture: Image.Image, channels: Channels, region: Region | None = None) -> Samples:
    """Return the samples that become `channels`, HWC: as stored if `_turn_of` turns them, else as displayed.

    Raises:
        ImageError: as `read_planes`.
    """
    with decoding_errors():
        if isinstance(picture, TiffPicture) and picture.mode != "P":
            return picture.samples(region, _places(picture.band_count, picture, channels))
        if _is_deep_png(picture, channels):
            left, top, right, bottom = region or (0, 0, *picture.size)
            samples = sixteen_bit_samples(picture)[top:bottom, left:right]
            return samples[..., _places(samples.shape[2], picture, channels)]
        if region is not None and orientation_of(picture) == 1:
            picture = decode_region(picture, region)
        else:
            load(picture)
            picture = picture if region is None else picture.crop(region)
        if picture.mode not in ("L", "LA", "RGB", "RGBA", "F") and not picture.mode.startswith("I"):
            picture = picture.convert("L" if picture.mode == "1" else "RGB")
        samples = np.atleast_3d(np.asarray(picture))
        return samples[..., _places(samples.shape[2], picture, channels)]


def check_samples(picture: Image.Image, channels: Channels) -> tuple[Samples | None, Bools | None]:
    """Decode an opened image; return the samples of pixels with data, [N, bands], if windows are chosen by them, and
    where it holds no data as displayed, HW, if anywhere. RGB of more than 8 bits counts as one band.

    Raises:
        ImageError: as `read_planes`.
    """
    nodata = _nodata_of(picture, channels)
    if channels.bands is None:
        check_is_rgb(picture)
        if nodata is None and not is_deep(picture):
            load(picture)
            return None, None
    samples = read_samples(picture, channels)
    holes = _holes(samples, nodata)
    flat = samples.reshape(-1, samples.shape[2])
    there = flat if holes is None else flat[~holes.reshape(-1)]
    if holes is not None and (turn := _turn_of(picture, channels)) is not None:
        holes = np.asarray(Image.fromarray(holes).transpose(turn))
    if channels.bands is None:
        return there.reshape(-1, 1) if is_deep(picture) else None, holes
    return there, holes


def decoded_pixels(picture: Image.Image, channels: Channels = RGB) -> int:
    """Return how many pixels of RGB, of four bytes each, an opened image takes decoded."""
    pixels = math.prod(picture.size)
    if channels.bands is None or not isinstance(picture, TiffPicture):
        return pixels
    return pixels * max(1, math.ceil((picture.bytes_per_pixel + channels.count) / 4))


def _turn_of(picture: Image.Image, channels: Channels) -> Image.Transpose | None:
    """Return what brings samples, as `read_samples` returns them, to how the image is displayed."""
    stored = (isinstance(picture, TiffPicture) and picture.mode != "P") or _is_deep_png(picture, channels)
    with decoding_errors():
        return TURNS.get(orientation_of(picture)) if stored else None


def _is_deep_png(picture: Image.Image, channels: Channels) -> bool:
    """Return whether the bands are those of a PNG in colours of 16 bits; as displayed they keep their high byte."""
    return channels.bands is not None and is_deep_colour(picture)


def _places(available: int, picture: Image.Image, channels: Channels) -> list[int]:
    """Return which of the bands that there are become channels, from 0."""
    if channels.bands is None:
        colours = 3 if picture.mode.startswith("RGB") else 1
        return list(range(colours))
    if missing := [band for band in channels.bands if band > available]:
        asked = ", ".join(map(str, channels.bands))
        raise ImageError(
            f"has {available} band{'s' * (available > 1)}, and band {missing[0]} is a channel of the model (--bands "
            f"{asked}); leave it out, or give it the bands"
        )
    return [band - 1 for band in channels.bands]


def _scaled(samples: Samples, picture: Image.Image, channels: Channels) -> Planes:
    """Return the planes of samples, HWC."""
    if channels.bands is not None and channels.kinds and kind_of(samples) not in channels.kinds:
        raise ImageError(
            f"has samples of {samples.dtype}, and the model was trained on {' and '.join(channels.kinds)}; convert it"
        )
    holes = _holes(samples, _nodata_of(picture, channels))
    if holes is not None and samples.dtype.kind == "f":
        samples = np.where(holes[..., None], samples.dtype.type(0), samples)  # not a number may be there
    images = np.empty(samples.shape, np.uint8)
    for place in range(samples.shape[2]):
        window = channels.windows[min(place, len(channels.windows) - 1)] if channels.windows else None
        if samples.dtype == np.uint8 and channels.bands is None:
            window = 0, 255
        images[..., place] = scale_to_8_bits(samples[..., place], window)
    no_data = None if holes is None else Image.fromarray(holes.astype(np.uint8))
    if channels.bands is None:
        return Planes((Image.fromarray(as_rgb(images)),), no_data)
    if holes is not None:
        images[holes] = WITHOUT_DATA
    return Planes(tuple(Image.fromarray(images[..., place]) for place in range(channels.count)), no_data)


def _nodata_of(picture: Image.Image, channels: Channels) -> float | None:
    """Return the sample of pixels that hold no data: what a TIFF says, or the set."""
    if isinstance(picture, TiffPicture) and picture.mode != "P" and picture.nodata is not None:
        return picture.nodata
    return channels.nodata


def _holes(samples: Samples, nodata: float | None) -> Bools | None:
    """Return where samples, HWC, are no data: where all are `nodata`, or one is not finite. None if nowhere."""
    holes = np.zeros(samples.shape[:2], bool)
    if nodata is not None and nodata == nodata:
        holes |= (samples == nodata).all(axis=2)
    if samples.dtype.kind == "f":
        holes |= ~np.isfinite(samples).all(axis=2)
    return holes if holes.any() else None
