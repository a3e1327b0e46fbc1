"""What the file of a mask says of itself, read back by us and by others."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_pair
from unet.data.geotiff import encode_geotiff
from unet.data.image import encode_mask, open_image
from unet.data.labels import Label, LabelSet, built_in_labels
from unet.data.mask import decode_mask
from unet.data.provenance import MAX_CLASSES, provenance_of, read_provenance

FINGERPRINT, DIGEST = "0123456789abcdef", "ab" * 32


def labels(*names: str) -> LabelSet:
    return LabelSet(tuple(Label(value=i, name=name, color=(i, i, 0)) for i, name in enumerate(names)))


def encode_tiff(*given: Any) -> bytes:
    mask, known, holes, said = given
    return encode_geotiff(mask, known, holes, (), said)


@pytest.mark.parametrize("encode", [encode_mask, encode_tiff])
@pytest.mark.parametrize("names", [("ground", "box"), ("Straße & <Weg>", 'a "b"'), ("地面", "箱")])
def test_a_mask_says_of_what_it_was_made_and_its_pixels_are_the_same(
    encode: Callable[..., bytes], names: tuple[str, str]
) -> None:
    known, mask = labels(*names), make_pair(0)[1]
    said = provenance_of(FINGERPRINT, DIGEST, known)
    data = encode(mask, known, None, said)
    classes = f"0={names[0]},1={names[1]}"
    assert (
        read_provenance(open_image(data))
        == {"fingerprint": FINGERPRINT, "model-digest": DIGEST, "classes": classes}
        == said
    )
    assert np.array_equal(decode_mask(data, known), mask)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_other_programs_find_it() -> None:
    known, mask = labels("ground", "box"), make_pair(0)[1]
    said = provenance_of(FINGERPRINT, DIGEST, known)
    with Image.open(io.BytesIO(encode_mask(mask, known, None, said))) as picture:
        assert picture.info["unet:fingerprint"] == FINGERPRINT
    rasterio = pytest.importorskip("rasterio")
    with rasterio.MemoryFile(encode_geotiff(mask, known, None, (), said)) as file, file.open() as opened:
        assert opened.tags()["unet_classes"] == "0=ground,1=box"


def test_a_long_list_of_classes_is_left_out() -> None:
    many = labels(*(f"a class of things, number {i}" for i in range(150)))
    assert provenance_of(FINGERPRINT, DIGEST, many).keys() == {"fingerprint", "model-digest"}
    assert "classes" not in provenance_of(FINGERPRINT, DIGEST, labels("ground", "line\nbreak"))
    just = labels("x" * (MAX_CLASSES - 5), "")
    assert len(provenance_of(FINGERPRINT, DIGEST, just)["classes"]) == MAX_CLASSES


def test_what_it_costs_is_a_few_hundred_bytes() -> None:
    known, mask = built_in_labels("camvid"), np.zeros((360, 480), np.uint8)
    said = provenance_of(FINGERPRINT, DIGEST, known)
    assert len(encode_mask(mask, known, None, said)) - len(encode_mask(mask, known)) < 400


def test_other_images_say_nothing() -> None:
    known, mask = labels("a", "b"), make_pair(0)[1]
    assert read_provenance(open_image(encode_mask(mask, known))) == {}
    assert read_provenance(open_image(encode_geotiff(mask, known))) == {}
