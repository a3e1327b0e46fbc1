"""The generated sample set: repeatable, complete, and not to be solved by colour and place alone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pixelwise import score_pixelwise
from unet.data.image import Array
from unet.data.labels import IGNORE, built_in_labels
from unet.data.mask import decode_mask
from unet.data.planes import decode_image
from unet.sample.canvas import SIZE
from unet.sample.scene import draw_scene
from unet.sample.write import write_sample_set

LABELS = built_in_labels("camvid")
CLASSES = len(LABELS.classes)
Scene = tuple[Array, Array]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in range(100)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two training scenes and one validation scene, not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    write_sample_set(str(folder), train=2, val=1)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The same set, to be changed."""
    return shutil.copytree(whole, tmp_path / "copy")


def test_a_scene_depends_on_its_seed_alone() -> None:
    first = draw_scene(3)
    other = draw_scene(4)
    again = draw_scene(3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_image_and_mask_are_bytes_of_one_size(scenes: list[Scene]) -> None:
    for image, mask in scenes:
        assert image.shape == (*SIZE, 3)
        assert mask.shape == SIZE
        assert image.dtype == mask.dtype == np.uint8


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        draw_scene(-1)


def test_masks_hold_classes_and_ignore_alone(scenes: list[Scene]) -> None:
    assert {int(value) for _, mask in scenes for value in np.unique(mask)} == {*range(CLASSES), IGNORE}


def test_every_class_appears_in_most_scenes(scenes: list[Scene]) -> None:
    seen = np.array([np.bincount(mask.ravel(), minlength=256)[:CLASSES] > 40 for _, mask in scenes])
    assert dict(zip(LABELS.names, seen.mean(0) > 0.5, strict=True)) == dict.fromkeys(LABELS.names, True)


def test_the_set_is_written_in_camvid_layout_and_reads_back(whole: Path) -> None:
    names = {str(path.relative_to(whole)) for path in whole.rglob("*.png")}
    scenes = {"train": ["scene-00000.png", "scene-00001.png"], "val": ["scene-00000.png"]}
    assert names == {f"{split}{kind}/{name}" for split, x in scenes.items() for name in x for kind in ("", "annot")}
    for folder, seed in (("train", 0), ("val", 1)):
        image, mask = draw_scene(seed)
        assert np.array_equal(decode_image((whole / folder / "scene-00000.png").read_bytes()), image)
        annotation = whole / f"{folder}annot" / "scene-00000.png"
        assert np.array_equal(decode_mask(annotation.read_bytes(), LABELS), mask)
        with Image.open(annotation) as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture.convert("RGB")), LABELS.colors[mask])


def test_no_scene_repeats_within_a_set(tmp_path: Path) -> None:
    write_sample_set(str(tmp_path), train=4, val=4)
    images = [path.read_bytes() for split in ("train", "val") for path in (tmp_path / split).iterdir()]
    assert len(set(images)) == 8


def test_a_complete_set_is_left_alone(copy: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*.png")}
    write_sample_set(str(copy), train=2, val=1)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.png")} == times


@pytest.mark.parametrize("lost", ["sample.json", "train/scene-00001.png", "valannot/scene-00000.png"])
def test_a_half_written_set_is_repaired(whole: Path, copy: Path, lost: str) -> None:
    (copy / lost).unlink()
    if lost == "sample.json":  # stopped while writing: the last file is cut short
        (copy / "train/scene-00001.png").write_bytes(b"\x89PNG")
    write_sample_set(str(copy), train=2, val=1)
    assert _files(copy) == _files(whole)


@pytest.mark.parametrize("change", [{"version": 0}, {"train": 3}])
def test_another_set_replaces_what_is_there_and_nothing_else(whole: Path, copy: Path, change: dict[str, int]) -> None:
    marker = json.loads((copy / "sample.json").read_text())
    (copy / "sample.json").write_text(json.dumps(marker | change))
    for name in ("scene-00000.png", "scene-00002.png", "mine.png"):
        (copy / "train" / name).write_bytes(b"another")
    write_sample_set(str(copy), train=2, val=1)
    assert _files(copy) == _files(whole) | {"train/mine.png": b"another"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small problems on a busy machine: threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_colour_and_place_alone_do_not_solve_the_set(scenes: list[Scene]) -> None:
    """Logistic regression on each pixel's colour, place, and their squares and products, fitted until it converges."""
    matrix = score_pixelwise(scenes[:80], [(image[::2, ::2], mask[::2, ::2]) for image, mask in scenes[80:]], CLASSES)
    assert 0.2 < matrix.mean_iou < 0.5  # above 0.2: a fair opponent, which has learnt what colour and place can tell


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}
