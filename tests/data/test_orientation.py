"""Masks of photos that EXIF turns: drawn on the photo as it is stored, or as it is displayed; never guessed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.conftest import make_pair
from unet.data.check import apply_check, check_labelled_set
from unet.data.image import Array
from unet.data.labelled_set import LabelledSet, find_labelled_set
from unet.data.labels import read_labels
from unet.data.open_pair import UndecidedOrientationError, open_pair
from unet.data.settings import MaskOrientation, SetSettings
from unet.data.statistics import statistics_table
from unet.settings import RequestError

BINARY = read_labels("binary")


def write_turned(folder: Path, name: str, orientation: int, lies: str, size: tuple[int, int] = (40, 56)) -> Array:
    """Writes a photo of an orientation, whose box is bright, and its mask; returns the mask as displayed."""
    image, mask = make_pair(int(name), size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / "images" / f"{name}.png", exif=exif)
    with_exif = Image.fromarray(mask)
    with_exif.getexif()[0x0112] = orientation
    displayed = np.asarray(ImageOps.exif_transpose(with_exif))
    Image.fromarray(displayed if lies == "displayed" else mask).save(folder / "masks" / f"{name}.png")
    return displayed


def found(folder: Path, lies: MaskOrientation = "auto") -> LabelledSet:
    labelled = find_labelled_set(SetSettings(data=str(folder), val_fraction=0.3, mask_orientation=lies))
    statistics = check_labelled_set(labelled, BINARY, 100, print)
    print(statistics_table(labelled, BINARY, statistics))
    return apply_check(labelled, statistics)


@pytest.mark.parametrize("lies", ["stored", "displayed"])
def test_the_sizes_of_some_say_how_all_masks_lie(tmp_path: Path, lies: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each image of whatever orientation has its bright box where its mask has it, in a rectangle too."""
    expected = {f"{number:03}": write_turned(tmp_path, f"{number:03}", number % 8 + 1, lies) for number in range(16)}
    labelled = found(tmp_path)
    assert f"turned, {lies}"[:15] in capsys.readouterr().out
    for pair in labelled.train + labelled.val:
        image, mask = open_pair(pair).decode(BINARY)
        assert np.array_equal(mask, expected[pair.key]), pair.key
        bright = image.to_array().min(-1) > 110
        assert (bright == (mask == 1)).mean() > 0.95, pair.key
        height, width = open_pair(pair).size
        assert (height, width) == mask.shape
        part, mask_part = open_pair(pair).decode(BINARY, region=(3, 5, width - 4, height - 2))
        assert np.array_equal(mask_part, mask[5 : height - 2, 3 : width - 4])
        assert np.array_equal(part.to_array(), image.to_array()[5 : height - 2, 3 : width - 4])


@pytest.mark.parametrize(("orientation", "size"), [(3, (40, 56)), (6, (48, 48))])
def test_a_set_whose_sizes_say_nothing_is_refused_until_it_is_told(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    for number in range(6):
        write_turned(tmp_path, f"{number:03}", orientation if number % 2 else 1, "stored", size)
    with pytest.raises(RequestError, match=r"3 images are turned by EXIF.*--mask-orientation stored or displayed"):
        found(tmp_path)
    for lies in ("stored", "displayed"):
        labelled = found(tmp_path, lies)
        by_key = {pair.key: open_pair(pair) for pair in labelled.train + labelled.val}
        image, mask = by_key["001"].decode(BINARY)
        agree = ((image.to_array().min(-1) > 110) == (mask == 1)).mean()
        assert agree > 0.95 if lies == "stored" else agree < 0.95


def test_sizes_that_contradict_what_is_said_are_refused(tmp_path: Path) -> None:
    for number in range(4):
        write_turned(tmp_path, f"{number:03}", 6, "stored")
    with pytest.raises(RequestError, match="export both at one size"):
        found(tmp_path, "displayed")


def test_a_pair_that_the_check_has_not_read_is_refused_by_name(tmp_path: Path) -> None:
    for number in range(6):
        write_turned(tmp_path, f"{number:03}", 3, "stored")
    labelled = find_labelled_set(SetSettings(data=str(tmp_path)))
    with pytest.raises(UndecidedOrientationError, match=r"00\d\.png: EXIF turns it \(orientation 3\)"):
        open_pair(labelled.train[0]).decode(BINARY)
