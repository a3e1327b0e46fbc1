"""What an earlier version left is read and gone on with: model folder, ledger, training run."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from unet.command_line import parse
from unet.data.channels import Channels
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.model.artifact import Model
from unet.segment.job import segment
from unet.segment.settings import SegmentSettings
from unet.settings import RequestError
from unet.storage.store import open_store
from unet.train.checkpoint import Checkpoints
from unet.train.job import train
from unet.train.journal import read_entries
from unet.train.optimizer import learning_rate
from unet.train.resume import check_identity, identity_of, planned_of, read_identity
from unet.train.run import TrainingRun
from unet.train.settings import TrainSettings

VERSIONS = sorted((ROOT / "tests/data").glob("written_by_*"))


@pytest.fixture(params=VERSIONS, ids=lambda folder: folder.name)
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version left: a set, the model and the checkpoints of a run, masks and their ledger."""
    return shutil.copytree(request.param, tmp_path / "left")


def settings_of(left: Path) -> TrainSettings:
    """The settings of the run, as it left them."""
    moved = ["--data", f"{left}/set", "--classes", f"{left}/set/classes.csv", "--output", f"{left}/runs"]
    return parse(TrainSettings, ["--config", str(left / "runs/finished/settings.yaml"), *moved])


def test_promise_41_the_model_folder_of_an_earlier_version_is_read(left: Path) -> None:
    model = Model.load(str(left / "runs/finished/model"))
    assert model.labels.names == ("ground", "box")
    assert model.scores["epoch"] >= 1


def test_promise_41_a_finished_run_of_an_earlier_version_is_finished(
    left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(settings_of(left)) == 0
    assert "this run is finished" in capsys.readouterr().out


def test_promise_41_settings_that_came_or_went_since_leave_a_finished_run_finished(
    left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = settings_of(left)
    file = left / "runs/finished/settings.yaml"
    file.write_text(file.read_text().replace("elastic: 0.01\n", "gone: 3\n"))  # as if --elastic were new
    assert train(replace(given, fit=replace(given.fit, precision="fp32"))) == 0
    assert "this run is finished" in capsys.readouterr().out


def test_promise_41_a_run_on_a_window_of_its_own_goes_on_with_it(left: Path) -> None:
    given = settings_of(left)
    run = TrainingRun(
        settings=given,
        folder=str(left / "runs/finished"),
        labelled=find_labelled_set(given.data),
        labels=read_labels(given.data.labels),
        class_weights=None,
    )
    before = read_identity(run.folder)
    assert "window" not in before
    check_identity(run, before)
    begun = replace(run, channels=Channels(windows=((200, 3000),)))
    check_identity(begun, before | {"digest": digest_with_window(begun)})  # as 0.1.0 wrote it
    check_identity(run, identity_of(begun))
    assert identity_of(begun)["channels"] == {"window": [200, 3000]}
    with pytest.raises(RequestError, match="another labelled set"):
        check_identity(replace(run, labels=read_labels("camvid")), before)


def digest_with_window(run: TrainingRun) -> str:
    keys = [[pair.key for pair in part] for part in (run.labelled.train, run.labelled.val)]
    return hashlib.sha256(json.dumps([keys, run.labels.to_json(), run.channels.window]).encode()).hexdigest()


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("unfinished", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_more_epochs_continue_a_run_of_an_earlier_version(
    left: Path, unfinished: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = left / "runs/finished"
    if unfinished:
        (run / "report/index.html").unlink()
    given, before = settings_of(left), read_entries(str(run))
    longer = replace(given, fit=replace(given.fit, epochs=5))
    assert train(longer) == 0
    after = read_entries(str(run))
    assert after[:3] == before
    assert [entry["step"] for entry in after] == [3, 6, 9, 12, 15]
    rates = [learning_rate(entry["step"] - 1, longer.fit, 15) for entry in after[3:]]
    assert [entry["learning_rate"] for entry in after[3:]] == rates
    assert (run / "report/index.html").stat().st_size > 0
    assert train(longer) == 0
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(RequestError, match="epochs 5 -> 3"):
        train(given)


@pytest.mark.usefixtures("one_ray")
def test_promise_41_an_unfinished_run_of_an_earlier_version_goes_on_from_its_checkpoint(left: Path) -> None:
    run = left / "runs/finished"
    shutil.rmtree(run / "report")
    *_, newest = sorted((run / "checkpoints").iterdir())
    newest.unlink()
    before = read_entries(str(run))
    assert train(settings_of(left)) == 0
    after = read_entries(str(run))
    assert after[:-1] == before[:-1]
    assert after[-1]["step"] == before[-1]["step"] == 9
    assert (Checkpoints(str(run)).latest() or "").startswith("step-000000009")
    assert planned_of(str(run))["block"] == "plain"  # as it will go on if it is interrupted once more


def pixels(mask: bytes) -> bytes:
    """What a mask holds, whatever it says of itself."""
    return np.asarray(Image.open(io.BytesIO(mask))).tobytes()


@pytest.mark.usefixtures("one_ray")
def test_promise_41_what_an_earlier_version_segmented_is_not_segmented_again(left: Path, bucket: str) -> None:
    masks = open_store(f"{bucket}/masks")
    for folder, uri in ((left / "set/val/images", f"{bucket}/images"), (left / "masks", f"{bucket}/masks")):
        for path in filter(Path.is_file, folder.rglob("*")):
            open_store(uri).put(str(path.relative_to(folder)), path.read_bytes())
    before = {key: masks.get(key) for key in ("100.png.png", "101.png.png")}
    flags = ["--input", f"{bucket}/images", "--output", f"{bucket}/masks", "--model", f"{left}/runs/finished/model"]
    for more, counts in (([], {"unchanged": 2}), (["--force"], {"done": 2})):
        assert segment(parse(SegmentSettings, [*flags, *more])) == 0
        summaries = [item.key for page in masks.list() for item in page if item.key.endswith("/summary.json")]
        assert counts in [json.loads(masks.get(key))["counts"] for key in summaries]
        assert {key: pixels(masks.get(key)) for key in before} == {key: pixels(data) for key, data in before.items()}
