"""Validation while training and the evaluation job count the same pixels."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_pair, write_pair
from tests.jobs.training import training_flags
from unet.command_line import run
from unet.data.settings import SetSettings
from unet.evaluate.job import evaluate
from unet.evaluate.settings import EvaluateSettings
from unet.model.artifact import Model
from unet.train.job import train
from unet.train.settings import TrainSettings


@pytest.mark.usefixtures("one_ray")
def test_a_run_on_crops_validates_whole_images_as_evaluation_does_tiles_included(boxes: Path, tmp_path: Path) -> None:
    image, mask = (np.tile(array, (27, 20, 1)[: array.ndim]) for array in make_pair(200))
    write_pair(boxes / "val", "200", image, mask)  # 1080 x 1120 pixels, which is more than a tile
    write_pair(boxes / "val", "odd", *make_pair(7, (33, 61)))
    flags = training_flags(str(boxes), str(tmp_path), epochs=1, steps_per_epoch=3, classes=boxes / "classes.csv")
    place = flags.index("--size")
    assert run(train, TrainSettings, [*flags[:place], "--crop", "32", "32", *flags[place + 3 :]]) == 0
    model = str(tmp_path / "run/model")
    assert (
        evaluate(EvaluateSettings(data=SetSettings(data=str(boxes)), model=model, output=str(tmp_path / "scores"))) == 0
    )
    counts = np.array(json.loads((tmp_path / "scores/scores.json").read_text())["confusion"])
    assert counts.sum() == 1080 * 1120 + 33 * 61 + 5 * 40 * 56
    difference = np.abs(np.array(Model.load(model).scores["confusion"]) - counts).sum()
    assert difference <= 1e-6 * counts.sum()
