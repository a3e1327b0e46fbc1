"""The evaluation job: its scores, whatever the workers; masks already written; what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from tests.jobs.bench import save_model
from unet.command_line import run
from unet.data.image import encode_image
from unet.data.labelled_set import find_labelled_set, find_part, read_pair
from unet.data.labels import IGNORE, read_labels
from unet.data.settings import DataSettings, SetSettings
from unet.evaluate.job import evaluate
from unet.evaluate.settings import EvaluateSettings
from unet.model.artifact import Model
from unet.model.network import UNet
from unet.model.predictor import Predictor
from unet.segment.job import segment
from unet.segment.settings import SegmentSettings
from unet.settings import Geometry

pytestmark = pytest.mark.usefixtures("one_ray")

Job = Callable[..., dict[str, Any]]


@pytest.fixture
def model(boxes: Path, tmp_path: Path) -> str:
    torch.manual_seed(0)
    labels = read_labels(str(boxes / "classes.csv"))
    network = UNet(classes=len(labels.classes), width=4, depth=2, norm="batch", dropout=0.0).eval()
    Model(network=network, labels=labels, geometry=Geometry("native", (32, 32))).save(str(tmp_path / "model"))
    return str(tmp_path / "model")


def flags_of(given: dict[str, Any]) -> list[str]:
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def job(boxes: Path, tmp_path: Path) -> Job:
    """Runs the job on all of `boxes`, with one worker; returns its scores."""

    def call(**given: Any) -> dict[str, Any]:
        flags = {"data": boxes, "part": "all", "output": tmp_path / "scores", "workers": 1} | given
        flags = {name: value for name, value in flags.items() if value is not None}
        assert run(evaluate, EvaluateSettings, flags_of(flags)) == 0
        scores: dict[str, Any] = json.loads((tmp_path / "scores" / "scores.json").read_text())
        assert scores.pop("seconds") > 0
        scores.pop("images_per_second")
        return scores

    return call


def test_scores_are_those_of_torchmetrics_on_the_predictor_s_masks(
    job: Job, model: str, boxes: Path, tmp_path: Path
) -> None:
    scores = job(model=model, workers=2)
    loaded = Model.load(model)
    predictor, classes = Predictor(loaded), len(loaded.labels.classes)
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="of the model"))
    pairs = labelled.train + labelled.val
    iou = MulticlassJaccardIndex(classes, average="none", ignore_index=IGNORE)
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=IGNORE)
    for pair in pairs:
        picture, truth = read_pair(pair, loaded.labels)
        mask = predictor.predict(picture.to_array())
        for metric in (iou, accuracy):
            metric.update(torch.from_numpy(mask).long(), torch.from_numpy(truth).long())
    assert scores["images"] == len(pairs)
    assert scores["pixel_accuracy"] == pytest.approx(float(accuracy.compute()), abs=1e-6)
    ours = [scores["classes"][name]["iou"] for name in loaded.labels.names]
    assert ours == pytest.approx(iou.compute().tolist(), abs=1e-6)
    table = pq.read_table(tmp_path / "scores" / "images.parquet")
    assert table["key"].to_pylist() == sorted(pair.key for pair in pairs)
    assert sum(table["pixels"].to_pylist()) == scores["pixels"] == np.sum(scores["confusion"])
    assert {f"iou.{name}" for name in loaded.labels.names} < set(table.column_names)
    assert b"</html>" in (tmp_path / "scores" / "index.html").read_bytes()


def test_against_another_model_both_are_scored_on_the_same_images(
    job: Job, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = Model.load(model)
    torch.manual_seed(1)
    network = UNet(classes=len(loaded.labels.classes), width=4, depth=2, norm="batch", dropout=0.0).eval()
    old = str(tmp_path / "old")
    replace(loaded, network=network).save(old)
    against = job(model=model, against=old)["against"]
    printed = capsys.readouterr().out
    ours, theirs = job(model=model), job(model=old)
    difference = against["miou_difference"]
    assert (against["model"], against["digest"], against["miou"]) == (old, theirs["digest"], theirs["miou"])
    assert difference["value"] == pytest.approx(ours["miou"] - theirs["miou"], abs=1e-12)
    assert difference["low"] < difference["value"] < difference["high"]
    assert f"against {old}: mIoU {100 * difference['value']:+.2f} points (95%: " in printed
    for name, found in against["classes"].items():
        expected = ours["classes"][name]["iou"] - theirs["classes"][name]["iou"]
        assert found["iou_difference"]["value"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_scores_do_not_depend_on_workers_nor_batches(job: Job, model: str) -> None:
    first = job(model=model, workers=1)
    assert job(model=model, workers=2, batch_size=4) == first


def test_masks_that_segment_wrote_score_as_the_model_does(job: Job, model: str, boxes: Path, tmp_path: Path) -> None:
    scores = job(model=model)
    written = tmp_path / "masks"
    assert segment(SegmentSettings(input=str(boxes), output=str(written), model=model, workers="1")) == 0
    masks = job(predictions=written, classes=boxes / "classes.csv")
    told_apart = ("model", "digest", "predictions")
    assert {k: v for k, v in masks.items() if k not in told_apart} == {
        k: v for k, v in scores.items() if k not in told_apart
    }


def test_a_set_is_named_as_in_training(job: Job, model: str, boxes: Path) -> None:
    """By --images and --masks with --val-data, and with labels of its own; of one image all is scored."""
    parts = {"data": None, "images": boxes / "train/images", "masks": boxes / "train/masks"}
    scores = job(model=model, **parts)
    assert (scores["images"], scores["data"]) == (12, str(boxes / "train/images"))
    validated = job(model=model, **parts, val_data=boxes, part="val", classes=boxes / "classes.csv")
    assert (validated["images"], validated["val_data"]) == (5, str(boxes))
    assert validated["confusion"] == job(model=model, part="val")["confusion"]
    for file in sorted((boxes / "train").glob("*/*"))[:]:
        if file.stem != "003":
            file.unlink()
    assert job(model=model, **parts)["images"] == 1


def test_what_is_not_scored_is_not_read(job: Job, model: str, boxes: Path) -> None:
    (boxes / "train/images/003.png").write_bytes(b"no image")
    (boxes / "train/masks/004.png").unlink()
    assert job(model=model, part="val")["images"] == 5


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        ({"val_fraction": 0.1}, "--val-fraction 0.3: the model was trained on some of that; give 0.1"),
        ({"val_data": "/other", "val_fraction": 0.3}, "train; give --val-data /other"),
    ],
)
def test_a_set_without_parts_is_not_split_otherwise_than_it_was_for_training(
    trained: dict[str, Any], said: str, boxes: Path, model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else the score would be of images that the model has seen."""
    whole = str(boxes / "train")
    replace(Model.load(model), training={"data": f"{whole}/", "masks": None} | trained).save(model)
    given = {"data": whole, "model": model, "output": tmp_path / "scores", "val_fraction": 0.3}
    assert run(evaluate, EvaluateSettings, flags_of(given)) == 2
    assert said in capfd.readouterr().err
    of_another = {"data": "/another", "masks": None} | trained
    assert find_part(SetSettings(data=whole, val_fraction=0.3), "val", of_another).val


def test_by_default_the_images_are_scored_that_training_validates_on(job: Job, model: str, boxes: Path) -> None:
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="of the model"))
    assert job(model=model, part="val")["images"] == len(labelled.val)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "--model, or --predictions"),
        ({"model": "nowhere"}, "is no model folder"),
        ({"model": "{model}", "against": "nowhere"}, "error: --against "),
        ({"against": "{model}", "predictions": "{masks}"}, "give --model in place of --predictions"),
        ({"model": "{model}", "against": "{other}"}, "only models of the same classes"),
        ({"predictions": "{masks}"}, "--classes"),
        ({"predictions": "{masks}", "classes": "{boxes}/classes.csv"}, "lacks "),
        (
            {"masks": "{masks}", "classes": "{boxes}/classes.csv"},
            "masks to score, of jobs/evaluate.py, are --predictions",
        ),
        ({"model": "{model}", "classes": "camvid"}, "in the same order"),
        ({"model": "{model}", "data": "{masks}"}, "none of the known layouts"),
    ],
)
def test_a_request_that_cannot_be_right_is_one_line(
    given: dict[str, str],
    said: str,
    model: str,
    boxes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "masks").mkdir()
    other = save_model(str(tmp_path / "other"), labels=read_labels("binary"))
    places = {"masks": tmp_path / "masks", "boxes": boxes, "model": model, "other": other}
    flags = {"data": str(boxes), "output": str(tmp_path / "scores")} | given
    assert run(evaluate, EvaluateSettings, flags_of({k: v.format(**places) for k, v in flags.items()})) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_written_mask_of_another_size_is_named(
    model: str, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for image in boxes.glob("*/images/*"):
        shutil.copy(next(boxes.glob(f"*/masks/{image.stem}.*")), masks / f"{image.name}.png")
    wrong = sorted(masks.iterdir())[0]
    wrong.write_bytes(encode_image(np.zeros((3, 5), np.uint8)))
    flags = {"data": boxes, "part": "all", "output": tmp_path / "scores", "predictions": masks}
    flags["classes"] = boxes / "classes.csv"
    assert run(evaluate, EvaluateSettings, flags_of(flags)) == 2
    error = capsys.readouterr().err
    assert f"{wrong}: has 3 x 5 pixels" in error
    assert error.count("\n") == 1
