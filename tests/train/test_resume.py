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
from unet.train.resume import asks_for_more, is_finished, kept_channels
from unet.train.run import TrainingRun
from unet.train.settings import FitSettings, TrainSettings


def settings(**fit: Any) -> TrainSettings:
    return TrainSettings(name="run", fit=FitSettings(**fit))


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
