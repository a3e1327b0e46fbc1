"""The training job, whole: what it leaves, what it refuses, how it ends."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import make_pair, write_pair
from tests.report.html_page import assert_alone
from unet.command_line import run
from unet.data.image import encode_image
from unet.model.artifact import Model
from unet.train.job import train
from unet.train.journal import read_entries
from unet.train.run import TrainingRun
from unet.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_ray")

Job = Callable[..., int]

RESNET = {"encoder": "resnet18", "depth": None}
"""Flags of a network with an encoder."""


@pytest.fixture
def job(boxes: Path, tmp_path: Path) -> Job:
    """Runs the job on `boxes` with a tiny model; keyword arguments are further flags."""

    def call(**flags: Any) -> int:
        given = {
            "data": boxes,
            "classes": boxes / "classes.csv",
            "output": tmp_path / "out",
            "name": "run",
            "size": "32 48",
            "width": 8,
            "depth": 2,
            "epochs": 2,
            "batch_size": 4,
        } | flags
        arguments = []
        for name, value in given.items():
            if value is not None:
                arguments += [f"--{name.replace('_', '-')}", *([] if value is True else str(value).split())]
        return run(train, TrainSettings, arguments)

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "run"


def test_a_run_leaves_what_the_contract_says(job: Job, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert job(epochs=3, lr=0.01) == 0
    entries = read_entries(str(folder))
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    assert [entry["step"] for entry in entries] == [3, 6, 9]
    assert entries[-1]["val_iou"].keys() == {"ground", "box"}
    assert {"train_loss", "val_loss", "val_pixel_accuracy", "val_miou", "images_per_second", "seconds"} <= entries[
        0
    ].keys()
    assert yaml.safe_load((folder / "settings.yaml").read_text())["batch_size"] == 4
    assert list((folder / "tensorboard").glob("events.out.*"))
    assert [path.name for path in (folder / "report").iterdir()] == ["index.html"]
    assert_alone((folder / "report/index.html").read_bytes())
    model = Model.load(str(folder / "model"), "--model")
    best = max(entries, key=lambda entry: entry["val_miou"])
    assert model.scores["val_miou"] == best["val_miou"]
    assert np.sum(model.scores["confusion"]) == 5 * 32 * 48  # every validation pixel exactly once
    assert model.reference is not None
    assert (model.reference.images, model.reference.masks) == (12, 5)  # of training, and of validation
    assert model.reference.mean_class_shares.sum() == pytest.approx(1, abs=1e-3)
    assert "report:" in capfd.readouterr().out

    shutil.rmtree(folder / "report")  # a run that lacks only its report gets it
    assert job(epochs=3, lr=0.01) == 0
    assert (folder / "report/index.html").exists()
    assert read_entries(str(folder)) == entries


def test_a_finished_run_says_so_refuses_other_settings_and_sets_and_may_be_started_from(
    job: Job,
    folder: Path,
    boxes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert job(epochs=1) == 0
    assert job(epochs=1) == 0
    assert "this run is finished" in capfd.readouterr().out
    shutil.move(folder / "checkpoints", tmp_path / "checkpoints")
    assert job(epochs=1) == 0
    assert job(epochs=2) == 2
    assert "has no checkpoint left to go on from" in capfd.readouterr().err
    shutil.move(tmp_path / "checkpoints", folder / "checkpoints")
    assert job(epochs=1, lr=0.5) == 2
    assert "lr 0.008 -> 0.5" in capfd.readouterr().err
    (folder / "report/index.html").unlink()
    write_pair(boxes / "train", "900", *make_pair(900))
    assert job(epochs=1) == 2
    assert "12 training and 5 validation images; 13 training" in capfd.readouterr().err

    assert job(name="next", init_from=folder / "model", width=16) == 2
    assert "none of its weights fit" in capfd.readouterr().err
    monkeypatch.chdir(tmp_path)  # relative paths are those of the command, not of its workers
    assert job(name="next", epochs=1, init_from="out/run/model", data="boxes", output="out", lr=1e-9) == 0
    before, after = (Model.load(str(tmp_path / "out" / name / "model")) for name in ("run", "next"))
    for name, tensor in after.network.named_parameters():
        assert torch.allclose(tensor, dict(before.network.named_parameters())[name], atol=1e-4), name


@pytest.mark.slow
def test_score_ignore_makes_void_a_class_and_max_steps_ends_the_run(job: Job, boxes: Path, folder: Path) -> None:
    (boxes / "classes.csv").write_text("index,name,red,green,blue\n0,ground,0,0,0\n1,box,1,0,0\n2,void,2,0,0\n")
    assert job(score_ignore=True, epochs=5, max_steps=2) == 0
    assert json.loads((folder / "model/model.json").read_text())["architecture"]["classes"] == 3
    assert read_entries(str(folder))[-1]["step"] == 2


@pytest.mark.slow
def test_max_steps_are_taken_whatever_epochs_says(job: Job, folder: Path) -> None:
    assert job(epochs=1, max_steps=7) == 0
    assert [entry["step"] for entry in read_entries(str(folder))] == [3, 6, 7]


@pytest.mark.slow
def test_training_stops_when_patience_runs_out(job: Job, folder: Path) -> None:
    assert job(epochs=9, patience=1, lr=1e-12, warmup_steps=0) == 0
    assert len(read_entries(str(folder))) < 9


@pytest.mark.slow
def test_options_of_the_network_the_loss_and_the_step_work(job: Job) -> None:
    network = {"norm": "group", "upsample": "bilinear", "dropout": 0.1, "compile": True}
    assert job(epochs=1, class_weights="none", accumulate=2, loss="ce", lr_schedule="cosine", **network) == 0


@pytest.mark.slow
def test_promise_30_a_loss_that_is_not_finite_stops_the_run_which_can_go_on_from_the_last_good_epoch(
    job: Job, boxes: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # A weight that overflows poisons the first batch that shows the class: image 000's alone, in some later epoch.
    image, mask = make_pair(0)
    write_pair(boxes / "train", "000", image, np.full_like(mask, 2))
    (boxes / "classes.csv").write_text("index,name,red,green,blue\n0,ground,0,0,0\n1,box,1,0,0\n2,rare,2,0,0\n")
    weights = tmp_path / "weights.csv"
    weights.write_text("name,weight\nground,1\nbox,1\nrare,3e38\n")
    flags = {"class_weights": weights, "epochs": 6, "steps_per_epoch": 1, "batch_size": 2, "seed": 1}
    assert job(**flags) == 1
    message = capfd.readouterr().err
    finished = len(read_entries(str(folder)))
    assert finished >= 1
    assert f"the loss is not finite at epoch {finished + 1}, step {finished + 1}" in message
    assert Model.load(str(folder / "model"), "").scores["epoch"] <= finished

    weights.write_text("name,weight\nground,1\nbox,1\nrare,1\n")
    assert job(**flags) == 0
    assert job(**flags, name="undisturbed") == 0
    files = [tmp_path / "out" / name / "model/model.safetensors" for name in ("run", "undisturbed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_page_of_a_check_says_that_it_looked_at_a_sample(job: Job, folder: Path) -> None:
    for limit, said in ((99, False), (4, True)):
        assert job(check=True, check_limit=limit) == 0
        assert ("4 of 17 pairs, a random sample" in (folder / "check.html").read_text()) == said


def test_a_fault_found_later_ends_the_run_naming_the_file(
    job: Job, boxes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for file in sorted((boxes / "train/masks").iterdir())[:11]:
        file.write_bytes(encode_image(np.full((40, 56), 9, np.uint8)))
    for file in (boxes / "val/masks").iterdir():
        file.write_bytes(encode_image(np.full((40, 56), 9, np.uint8)))
    assert job(check_limit=1) in (1, 2)  # whether the one pair that is checked is a faulty one or not
    assert "holds the value 9" in capfd.readouterr().err


def fails(config: Any) -> None:
    """Takes the place of the workers' loop; counts its calls."""
    with (Path(config["run"].folder) / "calls").open("a") as file:
        file.write("called\n")
    torch.nn.functional.batch_norm(torch.ones(1, 3, 1, 1), None, None, training=True)


def test_promise_42_an_exception_in_a_worker_ends_the_run_with_one_line_and_a_file(
    job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unet.train.job.train_worker", fails)
    assert job() == 1
    output = capfd.readouterr()
    (line,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert "ValueError: Expected more than 1 value per channel" in line
    assert f"traceback in {folder}/traceback.txt" in line
    assert "in fails" in (folder / "traceback.txt").read_text()
    assert (folder / "calls").read_text() == "called\n"
    assert "lost" not in output.out


def unpaired(boxes: Path) -> None:
    (boxes / "train/masks/003.png").unlink()


def outside(boxes: Path) -> None:
    (boxes / "train/masks/003.png").write_bytes(encode_image(np.full((40, 56), 7, np.uint8)))


def binary(boxes: Path) -> None:
    (boxes / "train/masks/003.png").write_bytes(encode_image(make_pair(3)[1] * 255))


def jpeg(boxes: Path) -> None:
    (boxes / "train/masks/003.png").unlink()
    (boxes / "train/masks/003.jpg").write_bytes(encode_image(make_pair(3)[1], "JPEG"))


def unequal(boxes: Path) -> None:
    (boxes / "train/masks/003.png").write_bytes(encode_image(make_pair(3, (41, 56))[1]))


def unreadable(boxes: Path) -> None:
    (boxes / "train/images/003.png").write_bytes(b"\x89PNG\r\n\x1a\n truncated")


def empty(boxes: Path) -> None:
    shutil.rmtree(boxes)
    boxes.mkdir()


def twice(boxes: Path) -> None:
    (boxes / "classes.csv").write_text("index,name,red,green,blue\n0,ground,0,0,0\n0,box,255,0,0\n")


def one_color(boxes: Path) -> None:
    (boxes / "classes.csv").write_text("index,name,red,green,blue\n0,ground,9,0,0\n1,box,9,0,0\n")


@pytest.mark.parametrize(
    ("spoil", "flags", "words"),
    [
        (None, {"data": "/no/such/folder"}, ["--data /no/such/folder", "no such folder"]),
        (empty, {"classes": "camvid"}, ["holds none of the known layouts", "images/ + masks/"]),
        (unpaired, {}, ["image without a mask", "003.png", "same stem"]),
        (outside, {}, ["masks/003.png", "the value 7", "label file"]),
        (binary, {}, ["masks/003.png", "0/255 mask", "index 255"]),
        (jpeg, {}, ["masks/003.jpg", "JPEG", "PNG"]),
        (unequal, {}, ["masks/003.png", "41 x 56", "40 x 56"]),
        (unreadable, {}, ["images/003.png", "cannot be decoded|is not an image|cannot be read"]),
        (None, {"colour": "3"}, ["--colour", "--help"]),
        (None, {"gpu": True}, ["--gpu", "no GPU", "leave the flag out"]),
        (None, {"batch_size": 99}, ["--batch-size 99", "12 training images"]),
        (None, {"workers": 13, "batch_size": None}, ["--workers times --accumulate 13", "12 training images"]),
        (twice, {}, ["classes.csv", "index 0"]),
        (one_color, {}, ["classes.csv", "colour"]),
        (None, {"class_weights": "/no/such.csv"}, ["--class-weights /no/such.csv"]),
        (None, {"init_from": "/no/model"}, ["--init-from /no/model", "no model folder"]),
        (None, {"encoder": "resnet18"}, ["--depth 2", "--encoder resnet18", "leave --depth out"]),
        (None, {"encoder_weights": "a.pth"}, ["--encoder-weights", "give --encoder"]),
        (None, RESNET | {"encoder_weights": "/no/a.pth"}, ["--encoder-weights /no/a.pth", "cannot be read"]),
        (None, RESNET | {"encoder_weights": "a.pth", "init_from": "b"}, ["--init-from", "give one"]),
        (None, {"output": "/dev/null/x"}, ["--output /dev/null/x", "cannot be written"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(value) if isinstance(value, dict) else None,
)
def test_a_request_that_cannot_be_right_is_exit_2_with_one_line(
    job: Job,
    boxes: Path,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None] | None,
    flags: dict[str, Any],
    words: list[str],
) -> None:
    if spoil:
        spoil(boxes)
    assert job(**flags) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert any(part in lines[0] for part in word.split("|")), f"{word} in {lines[0]}"
    # No worker has started. What the check of a good set has counted stays, for the next attempt.
    assert [path.name for path in folder.glob("*")] in ([], ["check.json"])


def test_of_two_commands_for_one_name_that_begin_together_one_is_refused(
    job: Job, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While this one prepared the other has written its first checkpoint."""
    other = folder / "checkpoints" / f"step-{9:09}-{0:016}.pt"

    def begin(run: TrainingRun, scratch: str) -> None:
        other.parent.mkdir(parents=True)
        other.write_bytes(b"of another")

    monkeypatch.setattr("unet.train.job._trainer", begin)
    assert job() == 2
    assert "--name run: another command has begun to train in" in capfd.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["check.json", "checkpoints"]


def test_a_misspelt_yaml_key_is_exit_2_with_one_line(
    job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epocs: 3\n")
    assert job(config=file) == 2
    assert "no setting 'epocs'; did you mean epochs?" in capfd.readouterr().err


@pytest.mark.slow
def test_classic_has_its_published_size_on_camvid(job: Job, folder: Path, camvid: Path) -> None:
    classic = {"model": "classic", "width": None, "depth": None, "size": "128 128", "batch_size": 32}
    assert job(data=camvid, classes="camvid", score_ignore=True, epochs=1, max_steps=2, **classic) == 0
    assert json.loads((folder / "model/model.json").read_text())["parameters"] == 34_514_060
