"""The generated sample set: repeatable, complete, and not to be solved by colour and place alone."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from unet.image import Array, decode_image, decode_mask
from unet.labels import BUILT_IN, IGNORE
from unet.metrics import ConfusionMatrix
from unet.sample import SIZE, draw_scene, write_sample_set

LABELS = BUILT_IN["camvid"]
CLASSES = len(LABELS.classes)
Scene = tuple[Array, Array]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in range(140)]


def test_a_scene_depends_on_its_seed_alone() -> None:
    first = draw_scene(3)
    other = draw_scene(4)
    again = draw_scene(3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_scene_has_the_size_that_was_asked_for() -> None:
    for size in (SIZE, (60, 100)):
        image, mask = draw_scene(0, size)
        assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
        assert (mask.shape, mask.dtype) == (size, np.uint8)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        draw_scene(-1)


def test_masks_hold_classes_and_ignore_alone(scenes: list[Scene]) -> None:
    assert {int(value) for _, mask in scenes for value in np.unique(mask)} == {*range(CLASSES), IGNORE}


def test_every_class_appears_in_most_scenes(scenes: list[Scene]) -> None:
    seen = np.array([np.bincount(mask.ravel(), minlength=256)[:CLASSES] > 40 for _, mask in scenes])
    assert dict(zip(LABELS.names, seen.mean(0) > 0.5, strict=True)) == dict.fromkeys(LABELS.names, True)


def test_the_set_is_written_in_camvid_layout_and_reads_back(tmp_path: Path) -> None:
    write_sample_set(tmp_path, train=2, val=1)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    scenes = {"train": ["scene-00000.png", "scene-00001.png"], "val": ["scene-00000.png"]}
    assert names == {f"{split}{kind}/{name}" for split, x in scenes.items() for name in x for kind in ("", "annot")}
    for folder, seed in (("train", 0), ("val", 1)):
        image, mask = draw_scene(seed)
        assert np.array_equal(decode_image((tmp_path / folder / "scene-00000.png").read_bytes()), image)
        annotation = tmp_path / f"{folder}annot" / "scene-00000.png"
        assert np.array_equal(decode_mask(annotation.read_bytes(), LABELS), mask)
        with Image.open(annotation) as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture.convert("RGB")), LABELS.colors[mask])


def test_no_scene_repeats_within_a_set(tmp_path: Path) -> None:
    write_sample_set(tmp_path, train=4, val=4)
    images = [path.read_bytes() for split in ("train", "val") for path in (tmp_path / split).iterdir()]
    assert len(set(images)) == 8


def test_a_complete_set_is_left_alone(tmp_path: Path) -> None:
    write_sample_set(tmp_path, train=2, val=1)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    write_sample_set(tmp_path, train=2, val=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == times


@pytest.mark.parametrize("lost", ["sample.json", "train/scene-00001.png", "valannot/scene-00000.png"])
def test_a_half_written_set_is_repaired(tmp_path: Path, lost: str) -> None:
    write_sample_set(tmp_path, train=2, val=1)
    whole = _files(tmp_path)
    (tmp_path / lost).unlink()
    if lost == "sample.json":  # stopped while writing: the last file is cut short
        (tmp_path / "train/scene-00001.png").write_bytes(b"\x89PNG")
    write_sample_set(tmp_path, train=2, val=1)
    assert _files(tmp_path) == whole


def test_another_set_replaces_what_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_sample_set(tmp_path / "a", train=3, val=1)
    (tmp_path / "a/train/mine.png").write_bytes(b"mine")
    write_sample_set(tmp_path / "a", train=2, val=1, seed=5)
    write_sample_set(tmp_path / "b", train=2, val=1, seed=5)
    assert _files(tmp_path / "a") == _files(tmp_path / "b") | {"train/mine.png": b"mine"}


def test_colour_and_place_alone_do_not_solve_the_set(scenes: list[Scene]) -> None:
    """Logistic regression on each pixel's colour, place, and their squares and products, fitted until it converges."""
    training, validation = scenes[:100], scenes[100:]
    rng = np.random.default_rng(0)
    picked = [_some_pixels(scene, rng) for scene in training]
    features = torch.from_numpy(np.concatenate([x for x, _ in picked]))
    classes = torch.from_numpy(np.concatenate([y for _, y in picked])).long()
    deviation, mean = torch.std_mean(features, 0)
    model = _fit((features - mean) / deviation, classes)
    matrix = ConfusionMatrix.empty(CLASSES)
    with torch.no_grad():
        for image, mask in validation:
            logits = model((torch.from_numpy(_features(image)) - mean) / deviation)
            matrix.add(mask, logits.argmax(1).numpy().astype(np.uint8).reshape(mask.shape))
    assert 0.2 < matrix.mean_iou < 0.5  # above 0.2: a fair opponent, which has learnt what colour and place can tell


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def _features(image: Array) -> npt.NDArray[np.float32]:
    """[pixels, 20] float: red, green, blue, x, y, and the squares and products of all five."""
    y, x = np.mgrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j]
    plain = [*(image.transpose(2, 0, 1) / 127.5 - 1), x, y]
    products = [a * b for a, b in itertools.combinations_with_replacement(plain, 2)]
    return np.stack([*plain, *products], -1).reshape(-1, 20).astype(np.float32)


def _some_pixels(scene: Scene, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], Array]:
    image, mask = scene
    chosen = rng.permutation(np.flatnonzero(mask != IGNORE))[:300]
    return _features(image)[chosen], mask.ravel()[chosen]


def _fit(features: torch.Tensor, classes: torch.Tensor) -> torch.nn.Linear:
    model = torch.nn.Linear(features.shape[1], CLASSES)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(features), classes)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(step)
    with torch.enable_grad():
        loss = F.cross_entropy(model(features), classes)
        loss.backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    assert model.weight.grad.abs().max() < 0.01, "not converged"
    return model
