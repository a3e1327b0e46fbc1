"""From a command line to settings: flags, YAML files, and one helpful line for what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import unet
from tests.jobs.bench import save_model
from tests.servers.proxy import Proxy
from unet.command_line import JOBS, main, parse, run, run_job
from unet.segment.settings import SegmentSettings
from unet.settings import RequestError, to_mapping
from unet.storage import store
from unet.storage.faults import Unreachable
from unet.storage.s3 import S3Store
from unet.train.settings import TrainSettings


def test_what_storage_does_not_answer_is_one_line_and_may_be_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(_: SegmentSettings) -> int:
        raise Unreachable("s3://bucket/key", "no answer, 3 times")

    flags = ["--input", "a", "--output", "b", "--model", "c"]
    assert run(job, SegmentSettings, flags) == 1
    assert capsys.readouterr().err == "error: s3://bucket/key: no answer, 3 times\n"


@pytest.mark.parametrize(
    ("job", "flag"),
    [
        ("train", "--output"),
        ("train", "--data"),
        ("train", "--init-from"),
        ("train", "--encoder-weights"),
        ("segment", "--model"),
        ("segment", "--input"),
        ("segment", "--output"),
        ("evaluate", "--model"),
        ("evaluate", "--data"),
        ("evaluate", "--output"),
    ],
)
def test_promise_33_a_server_that_is_away_before_a_job_starts_is_exit_1_and_one_line(
    job: str,
    flag: str,
    boxes: Path,
    tmp_path: Path,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(store, "CHECK_SECONDS", 0)
    monkeypatch.setattr(S3Store.__init__, "__kwdefaults__", {"retry_seconds": 0})
    proxy.add(action="503")
    model, output = save_model(str(tmp_path / "model")), str(tmp_path / "output")
    labelled = {"--data": str(boxes), "--classes": str(boxes / "classes.csv"), "--output": output}
    given = {
        "train": labelled | {"--batch-size": "4", "--encoder": "resnet18"},
        "segment": {"--input": str(boxes), "--output": output, "--model": model},
        "evaluate": labelled | {"--model": model},
    }[job] | {flag: "s3://bucket/there"}
    assert run_job(job, [part for pair in given.items() for part in pair]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"error: {flag} s3://bucket/there: cannot be ")
    assert "SlowDown" in said


def test_flags_of_every_group_are_flat() -> None:
    settings = parse(TrainSettings, ["--size", "64", "96", "--width", "8", "--epochs", "3", "--flip", "0", "--compile"])
    assert settings.size == (64, 96)
    assert settings.model.width == 8
    assert settings.fit.epochs == 3
    assert settings.augment.flip == 0
    assert settings.fit.compile


def test_flags_win_over_a_config_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 7\nbatch-size: 4\nsize: [32, 48]\ncompile: true\nval_data: null\n")
    settings = parse(TrainSettings, ["--config", str(file), "--epochs", "2"])
    assert (settings.fit.epochs, settings.fit.batch_size, settings.size) == (2, 4, (32, 48))
    assert settings.fit.compile


def test_resolved_settings_can_be_fed_back(tmp_path: Path) -> None:
    before = parse(TrainSettings, ["--crop", "64", "64", "--scale", "0.5", "2", "--norm", "group", "--compile"])
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(to_mapping(before)))
    assert parse(TrainSettings, ["--config", str(file)]) == before


def test_a_config_file_is_taken_as_it_is_written(tmp_path: Path) -> None:
    """In YAML 1.1 the first two are 64 and 202401."""
    file = tmp_path / "run.yaml"
    file.write_text("workers: 1:4\nname: 2024_01\nlr: 1e-3\nnodata: .nan\nflip: 0.25\nseed: 16\n")
    settings = parse(TrainSettings, ["--config", str(file)])
    assert (settings.workers, settings.name, settings.fit.lr) == ("1:4", "2024_01", 1e-3)
    assert (settings.augment.flip, settings.fit.seed) == (0.25, 16)
    assert settings.data.nodata != settings.data.nodata


def test_no_two_groups_share_a_name() -> None:
    settings = TrainSettings()
    groups = [settings.data, settings.model, settings.augment, settings.fit]
    assert len(to_mapping(settings)) == len(vars(settings)) - len(groups) + sum(len(vars(group)) for group in groups)


def test_help_documents_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(TrainSettings, ["--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    for name in to_mapping(TrainSettings()):
        assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "Unrecognized options.*--epochs"),
        (["--epochs", "many"], "--epochs"),
        (["--model", "huge"], "--model"),
        (["--size", "64", "64", "--crop", "32", "32"], "--size and --crop"),
        (["--images", "x"], "--images and --masks"),
        (["--lr", "0"], "--lr 0.0 must be above 0"),
        (["--batch-size", "8", "--accumulate", "3"], "--accumulate 3 must divide"),
        (["--scale", "2", "1"], "--scale"),
        (["--data", "x"], "--classes: say what"),
        (["--weight-decay", "nan"], "--weight-decay"),
        (["--seed", "100000000000000"], "--seed"),
        (["--name", "a/b"], "--name"),
        (["--config"], "--config: name a YAML file"),
        (["--config", "missing.yaml"], "--config missing.yaml: cannot be read"),
    ],
)
def test_a_request_that_cannot_be_right_names_its_flag(arguments: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        parse(TrainSettings, arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epocs: 3\n", "no setting 'epocs'; did you mean epochs"),
        ("flip: much\n", "--flip"),
        ("compile: 3\n", "compile must be true or false"),
        ("- 3\n", "must hold"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_a_faulty_config_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match=message):
        parse(TrainSettings, ["--config", str(file)])


def test_a_faulty_request_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda settings: 0, TrainSettings, ["--epoch", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(lambda settings: 0, TrainSettings, []) == 0


def test_flags_that_are_missing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda _: 0, SegmentSettings, ["--input", "images"]) == 2
    assert capsys.readouterr().err == "error: missing: --output, --model; see --help\n"


def test_the_console_command_runs_the_job_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", "m", "--output", "m.pt"]) == 2
    assert "--output m.pt: name a file that ends in .onnx" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{unet.__version__}\n"
    for wrong in (["trian"], []):
        assert main(wrong) == 2
        assert "usage: unet check|train|segment|explain|evaluate|export|submit" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(JOBS))
def test_every_job_documents_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_what_users_import_is_there_and_costs_nothing_before_it_is_asked_for() -> None:
    program = "import sys, unet; assert 'torch' not in sys.modules; from unet import Model, Predictor; Model, Predictor"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not hasattr(unet, "no_such_name")
