"""Whether a run goes on that was begun before, and how long it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from unet.data.channels import Channels
from unet.data.labelled_set import LabelledSet
from unet.data.labels import read_labels
from unet.data.layouts import Pair
from unet.settings import RequestError, to_mapping
from unet.train.resume import asks_for_more, is_finished, kept_channels, planned_of, with_plan
from unet.train.run import TrainingRun
from unet.train.settings import FitSettings, TrainSettings


def settings(**fit: Any) -> TrainSettings:
    return TrainSettings(name="run", size=(32, 32), fit=FitSettings(**fit))


def begin(folder: Path, given: TrainSettings) -> str:
    (folder / "settings.yaml").write_text(yaml.safe_dump(to_mapping(given)))
    return str(folder)


def test_more_epochs_go_on_with_a_run_and_nothing_else_may_differ(tmp_path: Path) -> None:
    folder = begin(tmp_path, settings(epochs=3))
    assert not asks_for_more(folder, settings(epochs=3, precision="fp32"))
    assert asks_for_more(folder, settings(epochs=4))
    for other in ({"epochs": 2}, {"epochs": 4, "lr": 0.1}, {"epochs": 3, "max_steps": 9}):
        with pytest.raises(RequestError, match="--name run: was run with other settings"):
            asks_for_more(folder, settings(**other))


def test_epochs_have_no_say_in_a_run_of_max_steps(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="epochs 3 -> 4"):
        asks_for_more(begin(tmp_path, settings(epochs=3, max_steps=9)), settings(epochs=4, max_steps=9))


def test_what_a_version_did_not_know_was_at_its_default_and_what_is_gone_is_of_no_effect(tmp_path: Path) -> None:
    folder = begin(tmp_path, settings(epochs=3))
    file = tmp_path / "settings.yaml"
    left = yaml.safe_load(file.read_text())
    del left["elastic"]
    file.write_text(yaml.safe_dump(left | {"gone": 3}))
    assert not asks_for_more(folder, settings(epochs=3))


def begin_planned(folder: Path, given: TrainSettings, planned: dict[str, Any] | None) -> str:
    """Leaves what a run begun with `given` leaves; `planned` None: of version 0.1, which planned nothing."""
    (folder / "identity.json").write_text(json.dumps({} if planned is None else {"planned": planned}))
    return begin(folder, with_plan(given, planned or {}))


PLAN: dict[str, Any] = {"crop": [64, 96], "width": 16, "batch_size": 8, "epochs": 12, "steps_per_epoch": 30}


def test_the_same_command_goes_on_with_what_was_planned_when_its_run_began(tmp_path: Path) -> None:
    command = TrainSettings(name="run", fit=FitSettings(minutes=30))
    folder = begin_planned(tmp_path, command, PLAN)
    again = with_plan(command, planned_of(folder))
    assert (again.crop, again.size, again.model.width) == ((64, 96), None, 16)
    assert (again.fit.batch_size, again.fit.epochs, again.fit.steps_per_epoch) == (8, 12, 30)
    assert not asks_for_more(folder, again)
    longer = TrainSettings(name="run", fit=FitSettings(epochs=20))
    assert asks_for_more(folder, with_plan(longer, planned_of(folder)))
    for other, words in (
        (TrainSettings(name="run", fit=FitSettings(minutes=60)), "minutes 30 -> 60"),
        (TrainSettings(name="run", size=(32, 32), fit=FitSettings(minutes=30)), r"size None -> \[32, 32\]; crop"),
        (TrainSettings(name="run", fit=FitSettings(minutes=30, batch_size=4)), "batch_size 8 -> 4"),
    ):
        with pytest.raises(RequestError, match=words):
            asks_for_more(folder, with_plan(other, planned_of(folder)))


def test_what_was_given_when_a_run_began_has_to_be_given_again(tmp_path: Path) -> None:
    planned = {"crop": [64, 96], "width": 16}
    folder = begin_planned(tmp_path, TrainSettings(name="run", fit=FitSettings(batch_size=4, epochs=12)), planned)
    without = with_plan(TrainSettings(name="run", fit=FitSettings(epochs=12)), planned_of(folder))
    with pytest.raises(RequestError, match="batch_size 4 -> None"):
        asks_for_more(folder, without)


def test_a_run_of_a_version_that_planned_nothing_goes_on_with_its_defaults(tmp_path: Path) -> None:
    older = to_mapping(TrainSettings(name="run", fit=FitSettings(batch_size=16, epochs=20, warmup_steps=20, ema=0.98)))
    del older["minutes"], older["block"]
    older["lr"] = 0.004
    (tmp_path / "identity.json").write_text("{}")
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(older))
    folder, command = str(tmp_path), TrainSettings(name="run")
    again = with_plan(command, planned_of(folder))
    assert (again.size, again.fit.batch_size, again.fit.ema) == ((128, 128), 16, 0.98)
    assert (again.fit.lr, again.model.block) == (0.004, "plain")
    assert not asks_for_more(folder, again)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(older | {"crop": [64, 64], "batch_size": 4}))
    again = with_plan(TrainSettings(name="run", crop=(64, 64), fit=FitSettings(batch_size=4)), planned_of(folder))
    assert (again.size, again.fit.batch_size) == (None, 4)
    assert not asks_for_more(folder, again)


def test_a_run_that_is_older_than_a_setting_goes_on_without_it(tmp_path: Path) -> None:
    command = TrainSettings(name="run", fit=FitSettings(minutes=30))
    folder = begin_planned(tmp_path, command, PLAN)
    file = tmp_path / "settings.yaml"
    known = yaml.safe_load(file.read_text())
    del known["gamma"], known["white_balance"]
    file.write_text(yaml.safe_dump(known))
    again = with_plan(command, planned_of(folder))
    assert (again.augment.gamma, again.augment.white_balance, again.fit.epochs) == (0, 0, 12)
    assert not asks_for_more(folder, again)


def test_a_run_is_finished_once_it_has_a_page_with_something_in_it(tmp_path: Path) -> None:
    page = tmp_path / "report/index.html"
    assert not is_finished(str(tmp_path))
    page.parent.mkdir()
    page.write_bytes(b"")
    assert not is_finished(str(tmp_path))
    page.write_bytes(b"<html>")
    assert is_finished(str(tmp_path))


def test_a_run_keeps_the_window_that_it_was_begun_with() -> None:
    assert kept_channels(None) is None
    assert kept_channels({"digest": ""}) is None  # of version 0.1, which did not note it
    assert kept_channels({"window": [3, 4]}) == Channels(windows=((3, 4),))
    assert kept_channels({"window": None}) == Channels()
    bands = Channels((4, 1), ((3.0, 4.0), (0.0, 0.5)), ("floating point",), nodata=-1.0)
    assert kept_channels({"channels": json.loads(json.dumps(bands.to_json()))}) == bands


@pytest.mark.parametrize(("max_steps", "steps", "epochs"), [(None, 6, 2), (5, 5, 2), (10, 10, 4)])
def test_max_steps_is_the_length_of_a_run_whatever_epochs_says(max_steps: int, steps: int, epochs: int) -> None:
    pairs = tuple(Pair(str(number), "", "") for number in range(12))
    run = TrainingRun(
        settings=settings(epochs=2, max_steps=max_steps, batch_size=4),
        folder="",
        labelled=LabelledSet(pairs, ()),
        labels=read_labels("camvid"),
        class_weights=None,
    )
    assert (run.total_steps, run.epochs) == (steps, epochs)
