"""Private names of Ray are there, and do what they are used for."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ray.train.torch import TorchConfig, TorchTrainer

from unet.runtime import ray_internals
from unet.runtime.ray_internals import max_resources, progress_bar


@pytest.mark.parametrize("name", ray_internals.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(ray_internals, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(ray_internals, "no_such_name")


def test_ray_train_asks_our_failure_policy_and_controller_callback() -> None:
    fit = inspect.getsource(TorchTrainer.fit)
    assert "_initialize_and_run_controller(" in fit
    assert "failure_policy=" in fit
    assert "callbacks=" in fit
    assert list(inspect.signature(ray_internals.DefaultFailurePolicy.make_decision).parameters)[1:] == [
        "training_failed_error"
    ]
    assert {"RETRY", "RAISE"} <= set(ray_internals.FailureDecision.__members__)
    assert hasattr(ray_internals.ControllerCallback, "after_controller_start")
    assert TorchConfig().backend_cls is ray_internals.TorchBackend
    assert list(inspect.signature(ray_internals.TorchBackend.on_start).parameters)[1:] == [
        "worker_group",
        "backend_config",
    ]


@pytest.mark.usefixtures("one_ray")
def test_a_cluster_without_an_autoscaler_says_nothing_of_what_it_may_grow_to() -> None:
    assert max_resources() == {}


def test_a_progress_bar_can_be_moved() -> None:
    bar = progress_bar("training", 3)
    bar.set_description("step 1")
    bar.update(1)
    bar.close()


@pytest.mark.slow
def test_workers_of_a_ray_of_our_own_have_the_priority_of_the_users_programs() -> None:
    program = """
import os, ray
from unet.runtime.session import connect
assert connect(worker_output=False)
print(os.getpriority(os.PRIO_PROCESS, 0), ray.get(ray.remote(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote()))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert ended.stdout.split() == [str(psutil.Process().nice())] * 2
