"""Every name that this project imports of Ray though Ray does not promise to keep it, and the environment variables of
Ray that it sets. No other file imports such a name.

Each stands here with the reason for it, what was measured without it, and what would replace it.
tests/runtime/test_ray_internals.py fails where Ray has renamed one.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from ray._private.authentication.authentication_token_setup import _enable_token_auth
from ray._private.state import state
from ray._private.utils import read_ray_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # not in its stub
from ray.experimental import tqdm_ray

if TYPE_CHECKING:
    from ray.train.torch.config import _TorchBackend as TorchBackend
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy

__all__ = [
    "ELASTIC_ENVIRONMENT",
    "LOCAL_ENVIRONMENT",
    "TRAIN_ENVIRONMENT",
    "ControllerCallback",
    "DatasetsCallback",
    "DefaultFailurePolicy",
    "FailureDecision",
    "PlacementGroupCleanerCallback",
    "TorchBackend",
    "begun_cluster",
    "max_resources",
    "progress_bar",
    "use_token_if_found",
]

LOCAL_ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Settings of a Ray that this process starts, which Ray reads from the environment and does not document.

worker_niceness: Ray starts its workers at nice 15. Beside the user's other programs, which run at 0, a busy machine
would then give training next to nothing of its processors instead of its share.
TRAIN_ENABLE_PREEMPTION_WATCHER: nobody takes this machine away with notice, and the watcher is a process more to start.
"""

TRAIN_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
"""Settings of Ray Train, for the driver that starts it: with the patch every line of a worker is shown twice."""

ELASTIC_ENVIRONMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
"""The same where the number of workers may change. Ray's coordinator notices after 20 s that a machine is gone. A run
that asks it before then waits for as many workers as there were: by default for a minute."""

_V2 = "ray.train.v2._internal"
_TRAIN = {
    "ControllerCallback": f"{_V2}.execution.callback.ControllerCallback",
    "DatasetsCallback": f"{_V2}.callbacks.datasets.DatasetsCallback",
    "DefaultFailurePolicy": f"{_V2}.execution.failure_handling.default.DefaultFailurePolicy",
    "FailureDecision": f"{_V2}.execution.failure_handling.FailureDecision",
    "PlacementGroupCleanerCallback": f"{_V2}.callbacks.placement_group_callback.PlacementGroupCleanerCallback",
    "TorchBackend": "ray.train.torch.config._TorchBackend",
}
"""What unet/train/trainer.py builds on, and where Ray Train keeps it.

DefaultFailurePolicy, FailureDecision: Ray Train by itself retries every failure, so a fault of the data is met
`max_failures` times. ControllerCallback: the controller's process now and then does not end by itself; 3 of 20 did not.
PlacementGroupCleanerCallback: left out. It starts an actor that asks the dashboard once a second for the controller's
state; where there is none, each time it prints that it failed, and training keeps 0.9 of its rate. Ray itself frees the
resources of a driver that has died.
DatasetsCallback: left out. It starts an actor for the data sets that a trainer is given, of which there are none here:
a second and a half of a processor while the workers start.
TorchBackend: sets the network interface on each machine before the workers connect; without it Gloo listens where the
machine's name points to, which on many is 127.0.1.1, and workers on several machines do not connect.

Imported when asked for: Ray Train takes half a second to import, which the other jobs need not wait for."""


def __getattr__(name: str) -> Any:
    if name not in _TRAIN:
        raise AttributeError(name)
    module, _, private = _TRAIN[name].rpartition(".")
    return getattr(importlib.import_module(module), private)


def begun_cluster() -> str | None:
    """Return the address of the cluster that `ray start` began on this machine last; None if there is none.

    Ray's public address="auto" takes any Ray that runs here, also one that another job has started for itself: that
    job's end would be the end of both.
    """
    address: str | None = read_ray_address()
    return address


def max_resources() -> dict[str, int]:
    """Return what the cluster may grow to by its autoscaler's configuration; empty without one.

    Ray's public calls tell what is there now: with them alone a GPU that the autoscaler would bring is refused.
    """
    return state.get_max_resources_from_cluster_config() or {}


def progress_bar(description: str, total: int) -> Any:
    """Return a bar on the driver's terminal that a worker moves, like tqdm's. Of Ray's own only this one travels."""
    return tqdm_ray.tqdm(desc=description, total=total)


def use_token_if_found() -> None:
    """Send a token with all that this process asks of a cluster, if RAY_AUTH_MODE is not set and there is one: in
    RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token, where a local Ray leaves it.

    `ray start` and `ray.init()` do the same, but no client of jobs does: a head that has found a token refuses them on
    its own machine. RAY_AUTH_MODE would do, if Ray did not read it once for all when it is imported.

    Raises:
        AuthenticationError: RAY_AUTH_MODE=token asks for a token and there is none, for which Ray would abort the
            process; or RAY_AUTH_TOKEN_PATH names a file that holds none.
    """
    loader = AuthenticationTokenLoader.instance()
    if "RAY_AUTH_MODE" in os.environ:
        loader.has_token()
    elif loader.has_token(ignore_auth_mode=True):
        _enable_token_auth()
