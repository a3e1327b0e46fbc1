"""Training without a flag but the set and its time: the plan, carried out."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.kinds import KINDS, write_set
from tests.pixelwise import score_pixelwise
from unet.command_line import run
from unet.data.image import Array
from unet.data.labels import IGNORE
from unet.model.artifact import Model
from unet.model.metrics import ConfusionMatrix
from unet.train.job import train
from unet.train.journal import read_entries
from unet.train.resume import read_identity
from unet.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_ray")


def test_a_plan_lands_in_the_settings_and_the_same_command_goes_on_with_it(
    boxes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(boxes), "--classes", str(boxes / "classes.csv"), "--output", str(tmp_path / "out")]
    small = [*flags, "--name", "run", "--width", "8", "--depth", "2", "--epochs", "2"]
    assert run(train, TrainSettings, small) == 0
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("plan: ")]
    assert len(said) == 5
    folder = tmp_path / "out" / "run"
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    assert (settings["crop"], settings["batch_size"], settings["epochs"]) == ([40, 56], 4, 2)
    assert read_identity(str(folder))["planned"] == {"crop": [40, 56], "batch_size": 4}
    assert Model.load(str(folder / "model")).geometry.size == (40, 56)
    assert run(train, TrainSettings, small) == 0
    assert "this run is finished" in capfd.readouterr().out
    assert run(train, TrainSettings, [*small[:-1], "3"]) == 0
    assert [entry["step"] for entry in read_entries(str(folder))] == [3, 6, 9]
    assert not [line for line in capfd.readouterr().out.splitlines() if line.startswith("plan: ")]
    assert read_identity(str(folder))["planned"] == {"crop": [40, 56], "batch_size": 4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_set_of_each_kind_beats_a_constant_and_its_pixels_in_minutes(kind: str, tmp_path: Path) -> None:
    flags = [*write_set(kind, tmp_path / "set"), "--minutes", "5" if kind == "many" else "1"]
    began = time.monotonic()
    assert run(train, TrainSettings, [*flags, "--output", str(tmp_path), "--name", "run"]) == 0
    print(f"{kind}: {time.monotonic() - began:.0f} s")
    draw, count, validated = KINDS[kind]
    model = Model.load(str(tmp_path / "run/model"))
    classes = len(model.labels.classes)
    training, validation = (
        [as_indices(*draw(seed), kind) for seed in range(first, first + number)]
        for first, number in ((0, count), (1000, validated))
    )
    torch.set_num_threads(1)
    pixelwise = score_pixelwise(training, validation, classes).mean_iou
    constant = best_constant([mask for _, mask in validation], classes)
    print(f"{kind}: mIoU {model.scores['val_miou']:.3f}, pixelwise {pixelwise:.3f}, constant {constant:.3f}")
    assert model.scores["val_miou"] > max(pixelwise, constant)


def as_indices(image: Array, mask: Array, kind: str) -> tuple[Array, Array]:
    """The scene with class indices in its mask; of binary sets these are 0 and 1."""
    return (image, mask // 255) if kind in ("medical", "dozen") else (image, mask)


def best_constant(masks: list[Array], classes: int) -> float:
    """The mean IoU of the best answer that is one class everywhere."""
    scores = []
    counts = np.bincount(np.concatenate([mask[mask != IGNORE] for mask in masks]), minlength=classes)
    for answer in np.argsort(counts)[-3:]:
        matrix = ConfusionMatrix.empty(classes)
        matrix.counts[:, answer] = counts
        scores.append(matrix.mean_iou)
    return max(scores)
