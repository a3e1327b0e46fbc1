"""MLflow is told of a training run, a resumed one as one and the same, and never ends a training."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.bench import save_model
from unet.settings import to_mapping
from unet.storage import store
from unet.train.resume import PAGE, SETTINGS
from unet.train.settings import TrainSettings
from unet.train.tracker import tracking

SETTINGS_OF_RUN = TrainSettings(name="street")


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's client, over a folder."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient(f"file:{tmp_path}/mlflow")


def finish_epochs(folder: str, count: int) -> None:
    """Leave what a training run of so many epochs leaves."""
    entries = [
        {"epoch": epoch, "val_miou": 0.1 * epoch, "val_iou": {"a (b)": 0.5, "void": None}}
        for epoch in range(1, count + 1)
    ]
    store.write(f"{folder}/metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries).encode())
    store.write(f"{folder}/{SETTINGS}", b"name: street\n")


def runs_of(client: Any) -> list[Any]:
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def test_settings_curves_model_and_page_are_told(client: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    with tracking(SETTINGS_OF_RUN, folder):
        finish_epochs(folder, 2)
        save_model(f"{folder}/model")
        store.write(f"{folder}/{PAGE}", b"<html>")
    (run,) = runs_of(client)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "street")
    assert run.data.params["epochs"] == str(SETTINGS_OF_RUN.fit.epochs)
    assert run.data.params.keys() == to_mapping(SETTINGS_OF_RUN).keys()
    history = client.get_metric_history(run.info.run_id, "val/miou")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.2)]
    assert run.data.metrics["val/iou/a _b_"] == 0.5
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"model", "report", SETTINGS}
    model = {item.path for item in client.list_artifacts(run.info.run_id, "model")}
    assert model == {"model/model.json", "model/model.safetensors"}


def test_a_resumed_training_goes_on_in_the_same_run_and_tells_each_epoch_once(client: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")

    def train(epochs: int, *, fault: bool) -> None:
        with tracking(SETTINGS_OF_RUN, folder):
            finish_epochs(folder, epochs)
            if fault:
                raise RuntimeError("a fault")

    with pytest.raises(RuntimeError):
        train(2, fault=True)
    assert [run.info.status for run in runs_of(client)] == ["FAILED"]
    train(3, fault=False)
    (run,) = runs_of(client)
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "val/miou")] == [1, 2, 3]


def test_a_tracker_that_fails_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking(SETTINGS_OF_RUN, str(tmp_path)):
        finish_epochs(str(tmp_path), 1)
    said = capsys.readouterr().out
    assert (
        said.count("warning: MLFLOW_TRACKING_URI is set, but MLflow is not told of this run") == said.count("\n") == 1
    )
    assert "secret" not in said
    assert "secret" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


def test_without_the_package_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with tracking(SETTINGS_OF_RUN, str(tmp_path)):
        pass
    said = capsys.readouterr().out
    assert said.endswith("install unet-ray[mlflow]\n")
    assert said.count("\n") == 1


def test_nobody_is_told_where_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking(SETTINGS_OF_RUN, str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []
