"""Masks are looked up in tables, a band at a time."""

import tracemalloc

import numpy as np
import pytest

from unet.data import image
from unet.data.image import encode_image
from unet.data.labels import read_labels
from unet.data.mask import decode_mask, open_mask, to_classes

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
