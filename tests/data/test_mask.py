"""Masks are looked up in tables, a band at a time."""

import io
import tracemalloc
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from unet.data import image
from unet.data.image import ImageError, encode_image
from unet.data.labels import read_labels
from unet.data.mask import decode_mask, is_read_by_colors, open_mask, to_classes
from unet.data.tiff import Region

PUBLISHED = read_labels("camvid32")


@pytest.mark.parametrize("kind", ["values", "colours"])
def test_every_label_is_looked_up_across_bands(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "BAND_PIXELS", 100)
    rows = np.random.default_rng(0).integers(0, 32, (40, 30))
    values = np.array([label.value for label in PUBLISHED.labels], np.uint8)[rows]
    colors = np.array([label.color for label in PUBLISHED.labels], np.uint8)[rows]
    mask = decode_mask(encode_image(values if kind == "values" else colors), PUBLISHED)
    assert (mask == PUBLISHED.value_to_class[values]).all()


def test_a_region_of_a_mask_is_that_of_the_whole() -> None:
    rows = np.random.default_rng(0).integers(0, 32, (40, 30))
    colors = np.array([label.color for label in PUBLISHED.labels], np.uint8)[rows]
    data = encode_image(colors)
    whole = decode_mask(data, PUBLISHED)
    assert (to_classes(open_mask(data), PUBLISHED, (3, 5, 20, 31)) == whole[5:31, 3:20]).all()


def test_a_colour_mask_is_decoded_without_copies_of_it() -> None:
    """Apart from Pillow's own, of which tracemalloc does not know."""
    side = 3000
    data = encode_image(np.zeros((side, side, 3), np.uint8))
    decode_mask(data, PUBLISHED)  # makes the table
    tracemalloc.start()
    decode_mask(data, PUBLISHED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * side**2


CAMVID = read_labels("camvid")


def palette_mask(indices: npt.NDArray[Any], colors: npt.NDArray[Any]) -> bytes:
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette(colors.astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("region", [None, (3, 5, 20, 31)])
@pytest.mark.parametrize("shift", [0, 1, 5])
def test_a_palette_in_another_order_is_read_by_its_colours(shift: int, region: Region | None) -> None:
    classes = np.random.default_rng(0).integers(0, 11, (40, 30))
    colors = np.roll(CAMVID.colors[:11], shift, axis=0)
    data = palette_mask((classes + shift) % 11, colors)
    mask = to_classes(open_mask(data), CAMVID, region)
    left, top, right, bottom = region or (0, 0, 30, 40)
    assert (mask == classes[top:bottom, left:right]).all()
    picture = open_mask(data)
    picture.load()
    assert is_read_by_colors(picture, CAMVID) == bool(shift)


@pytest.mark.parametrize("first", [0, 5])
def test_other_colours_than_the_labels_leave_indices_to_speak(first: int) -> None:
    """A palette of grays in their order does too, though the labels have black and white."""
    values = np.random.default_rng(0).integers(first, 11, (40, 30))
    for colors in (np.arange(256)[:, None].repeat(3, 1), np.random.default_rng(1).integers(0, 256, (256, 3))):
        assert (decode_mask(palette_mask(values, colors), CAMVID) == values).all()


def test_a_binary_palette_mask_with_white_first_is_not_inverted() -> None:
    foreground = np.random.default_rng(0).random((40, 30)) < 0.1
    data = palette_mask(~foreground, np.array([[255, 255, 255], [0, 0, 0]]))
    assert (decode_mask(data, read_labels("binary")) == foreground).all()


def test_a_palette_mask_of_neither_colours_nor_indices_of_labels_is_refused() -> None:
    with pytest.raises(ImageError, match="holds the value 99"):
        decode_mask(palette_mask(np.full((4, 4), 99), np.full((100, 3), 77)), CAMVID)


def test_a_mask_in_the_alpha_channel_is_refused() -> None:
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[5:9, 3:7, 3] = 255
    with pytest.raises(ImageError, match="alpha channel that holds the mask"):
        decode_mask(encode_image(pixels), read_labels("binary"))
    pixels[5:9, 3:7, :3] = 255
    assert decode_mask(encode_image(pixels), read_labels("binary")).sum() == 16


@pytest.mark.parametrize(("bands", "suffix"), [(2, "png"), (3, "png"), (4, "png"), (3, "tif")])
def test_colours_of_16_bits_are_refused_since_their_high_byte_is_no_label(bands: int, suffix: str) -> None:
    """[128, 0, 0] in uint16 has the high bytes of black."""
    samples = np.zeros((20, 30, bands), np.uint16)
    samples[5:9, 3:7, 0] = 128
    samples[..., 3:] = 65535
    file = io.BytesIO(imagecodecs.png_encode(samples))
    if suffix == "tif":
        tifffile.imwrite(file := io.BytesIO(), samples, photometric="rgb")
    with pytest.raises(ImageError, match="has colours of 16 bits"):
        decode_mask(file.getvalue(), read_labels("voc"))
    gray = bytes(imagecodecs.png_encode(samples[..., 0] // 128))
    assert decode_mask(gray, read_labels("binary")).sum() == 16
