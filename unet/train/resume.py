"""Whether a run goes on that was begun before: with which settings, on which set, and whether it is finished.

`settings.yaml` and `identity.json` in its folder say what it was begun with. The report is written last: a run that has
one is finished, and one that is asked for more steps has an empty one meanwhile.
"""

import hashlib
import json
import re
from contextlib import suppress
from typing import Any

import yaml

from unet.data.channels import Channels
from unet.settings import RequestError, to_mapping, with_values
from unet.storage import store
from unet.storage.faults import Vanished
from unet.storage.objects import join_uri
from unet.train.run import TrainingRun
from unet.train.settings import TrainSettings

SETTINGS, IDENTITY, PAGE, CHECKPOINTS = "settings.yaml", "identity.json", "report/index.html", "checkpoints"

_CHECKPOINT = re.compile(r"step-\d{9}-[0-9a-f]{16}\.pt")

NAMES_OF_SET = {"data", "images", "masks", "val_data", "classes", "binary"}
FREE = NAMES_OF_SET | {"output", "workers", "gpu", "checkpoint_every", "compile", "precision", "check"}
"""Settings that may differ when a run goes on; that the set and its labels are the same is seen in themselves."""

Identity = dict[str, Any]

OLDER = {
    "size": [128, 128],
    "batch_size": 16,
    "epochs": 20,
    "warmup_steps": 20,
    "ema": 0.98,
    "lr": 4e-3,
}
"""What version 0.1 had in place of a plan and of defaults that have changed since, where nothing was given."""

YOUNGER = {"block": "plain", "gamma": 0.0, "white_balance": 0.0, "class_mix": 0.0}
"""What runs did that began before there were these settings, whose defaults are other."""


def is_finished(folder: str) -> bool:
    """Return whether the run in `folder` is finished."""
    with suppress(Vanished):
        return store.open_store(folder).head(PAGE).size > 0
    return False


def planned_of(folder: str) -> dict[str, Any]:
    """Return the settings that were left open when the run in `folder` began, as they were planned then."""
    identity, before = read_identity(folder), _begun_with(folder)
    absent = {name: value for name, value in YOUNGER.items() if name not in _settings_of(folder)}
    older = {name: value for name, value in OLDER.items() if before[name] == value}
    return {**absent, **identity.get("planned", older)}


def with_plan(settings: TrainSettings, planned: dict[str, Any]) -> TrainSettings:
    """Return `settings` with what they leave open as it was planned when their run began."""
    defaults = to_mapping(TrainSettings())
    given = {name for name, value in to_mapping(settings).items() if value != defaults[name]}
    given |= {"size", "crop"} if given & {"size", "crop"} else set()  # one of them, or a plan
    return with_values(settings, {name: value for name, value in planned.items() if name not in given})


def _settings_of(folder: str) -> dict[str, Any]:
    return dict(yaml.safe_load(store.read(join_uri(folder, SETTINGS))))


def _begun_with(folder: str) -> dict[str, Any]:
    # What an older version did not know yet was at its default. What this one does not know has no effect on it.
    before: dict[str, Any] = to_mapping(TrainSettings()) | YOUNGER | _settings_of(folder)
    if before["size"] is None and before["crop"] is None:
        before["size"] = OLDER["size"]
    return before


def has_begun(folder: str) -> bool:
    """Return whether the run in `folder` has a checkpoint. Raise StorageError."""
    return bool(checkpoint_names(join_uri(folder, CHECKPOINTS)))


def checkpoint_names(folder: str) -> list[str]:
    """Return the names of the checkpoints in `folder`. Raise StorageError."""
    return [name for name in store.list_files(folder) if _CHECKPOINT.fullmatch(name)]


def asks_for_more(folder: str, settings: TrainSettings) -> bool:
    """Return whether `settings` ask for more epochs than those that the run in `folder` was begun with.

    Raises:
        RequestError: they differ in another way.
    """
    before, now = _begun_with(folder), to_mapping(settings)
    more: bool = now["max_steps"] is None and (now["epochs"] or 0) > (before["epochs"] or 0)
    free = FREE | {"epochs", "minutes"} if more else FREE
    names = [name for name in now if name not in free and before[name] != now[name]]
    if names:
        changed = "; ".join(f"{name} {before[name]} -> {now[name]}" for name in names)
        raise RequestError(f"--name {settings.name}: was run with other settings ({changed}); take another")
    return more


def read_identity(folder: str) -> Identity:
    """Return what the run in `folder` was begun on."""
    return dict(json.loads(store.read(join_uri(folder, IDENTITY))))


def identity_of(run: TrainingRun) -> Identity:
    """Return what the run trains on: the number of pairs, a digest of their keys and labels, the channels, the
    images of damaged pairs, which are left out, the settings that were planned, and whose command it is."""
    return {
        "train": len(run.labelled.train),
        "val": len(run.labelled.val),
        "digest": _digest(run),
        "channels": run.channels.to_json(),
        "left_out": list(run.left_out),
        "planned": run.planned,
        "driver": run.driver,
    }


def check_identity(run: TrainingRun, before: Identity) -> None:
    """Raise RequestError if the run was begun on another labelled set."""
    now = identity_of(run)
    # Version 0.1 had the window in the digest.
    if before["digest"] not in (now["digest"], _digest(run, *run.channels.windows)):
        then, here = (f"{part['train']} training and {part['val']} validation images" for part in (before, now))
        raise RequestError(
            f"--name {run.settings.name}: began on another labelled set or label file ({then}; {here} now); "
            "take another"
        )


def kept_channels(before: Identity | None) -> Channels | None:
    """Return the channels that a run was begun with; None where it begins now, or where version 0.1 began it."""
    if before is None or not before.keys() & {"channels", "window"}:
        return None
    return Channels.from_json(before.get("channels", before))


def _digest(run: TrainingRun, *more: Any) -> str:
    keys = [[pair.key for pair in part] for part in (run.labelled.train, run.labelled.val)]
    return hashlib.sha256(json.dumps([keys, run.labels.to_json(), *more]).encode()).hexdigest()
