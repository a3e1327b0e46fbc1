"""What an earlier version left is read and gone on with: model folder, ledger, training run."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from unet.command_line import parse
from unet.model.artifact import Model
from unet.segment.job import segment
from unet.segment.settings import SegmentSettings
from unet.storage.store import open_store
from unet.train.checkpoint import Checkpoints
from unet.train.job import train
from unet.train.journal import read_entries
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
    assert {key: masks.get(key) for key in before} == before
