"""Ray Train as we use it: what workers reserve, what is refused, and which failures last."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from tests.conftest import ROOT
from unet.runtime.ray_internals import FailureDecision
from unet.settings import RequestError
from unet.train.faults import WorkerFault
from unet.train.job import _trainer
from unet.train.settings import TrainSettings
from unet.train.trainer import FailurePolicy, resources

Machines = Callable[..., None]


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Makes a cluster of these resources."""

    def make(*given: dict[str, float]) -> None:
        nodes = [{"Alive": True, "Resources": each} for each in given] + [{"Alive": False, "Resources": {"CPU": 64.0}}]
        monkeypatch.setattr("unet.train.trainer.ray.nodes", lambda: nodes)

    return make


def test_workers_on_cpus_share_their_machines_and_no_machine_holds_one_more(machines: Machines) -> None:
    machines({"CPU": 2.0}, {"CPU": 2.0}, {"memory": 1.0})
    assert resources(2, least=2, gpu=False, local=False) == ({"CPU": 2.0}, 0)
    assert resources(3, least=3, gpu=False, local=False) == ({"CPU": 1.0}, 0)
    machines({"CPU": 4.0})
    reserved, data = resources(3, least=3, gpu=False, local=True)
    assert data == 0
    assert 3 * reserved["CPU"] <= 4 < 4 * reserved["CPU"]


def test_workers_on_gpus_leave_all_other_cpus_to_the_data(machines: Machines) -> None:
    machines({"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0})
    assert resources(2, least=2, gpu=True, local=False) == ({"GPU": 1.0, "CPU": 1.0}, 7)


def test_an_elastic_run_on_gpus_begins_with_the_machines_that_are_there(machines: Machines) -> None:
    machines({"CPU": 4.0, "GPU": 1.0})
    assert resources(4, least=1, gpu=True, local=False) == ({"GPU": 1.0, "CPU": 1.0}, 3)


def test_gpus_that_an_autoscaler_may_bring_are_waited_for(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machines({"memory": 1.0})
    monkeypatch.setattr("unet.train.trainer.capacity", lambda kind: 4)
    assert resources(4, least=1, gpu=True, local=False) == ({"GPU": 1.0, "CPU": 1.0}, 1)
    assert "waiting for 1 GPUs" in capsys.readouterr().out


def test_what_a_cluster_cannot_hold_is_refused(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machines({"CPU": 2.0})
    with pytest.raises(RequestError, match="3 workers need a CPU each, and this machine has 2"):
        resources(3, least=3, gpu=False, local=True)
    with pytest.raises(RequestError, match="--gpu: the cluster has no GPU"):
        resources(1, least=1, gpu=True, local=True)
    monkeypatch.setattr("unet.train.trainer.capacity", lambda kind: 0)
    with pytest.raises(RequestError, match="--gpu: the cluster has no GPU"):
        resources(1, least=1, gpu=True, local=False)
    machines({"CPU": 3.0, "GPU": 2.0})
    with pytest.raises(RequestError, match="need 2 CPUs each, and the cluster has 3"):
        resources(2, least=2, gpu=True, local=False)
    resources(4, least=4, gpu=True, local=False)  # machines may come
    assert "waiting for 4 GPUs; the cluster has 2" in capsys.readouterr().out


def test_promise_42_what_would_come_again_is_not_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    policy = FailurePolicy(FailureConfig(max_failures=2))

    def decision(*errors: Exception) -> FailureDecision:
        return policy.make_decision(WorkerGroupError("the reason", dict(enumerate(errors))))

    assert decision(WorkerFault("ValueError: one value per channel", "Traceback")) == FailureDecision.RAISE
    assert capsys.readouterr().out == ""
    assert [decision(RayActorError()) for _ in range(3)] == 2 * [FailureDecision.RETRY] + [FailureDecision.RAISE]
    assert "workers are lost, going on from the last checkpoint (the reason)" in capsys.readouterr().out


def test_workers_that_are_lost_while_they_meet_meet_again_but_not_for_ever() -> None:
    policy = FailurePolicy(FailureConfig(max_failures=2))
    lost = ControllerError(RayActorError())
    decisions = [policy.make_decision(lost) for _ in range(3)]
    assert decisions == [FailureDecision.RETRY, FailureDecision.RETRY, FailureDecision.RAISE]
    assert policy.make_decision(ControllerError(ValueError("a fault of the controller"))) == FailureDecision.RAISE


def test_threads_of_a_worker_that_wait_leave_their_processor_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Any = SimpleNamespace(settings=TrainSettings(), reserved={"CPU": 1.0})

    def environment() -> Any:
        config: Any = _trainer(run, str(tmp_path)).run_config
        return config.worker_runtime_env

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert environment() == {"env_vars": {"GOMP_SPINCOUNT": "10000"}}
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment() == {"env_vars": {"GOMP_SPINCOUNT": "7"}}


def test_what_makes_batches_starts_without_pytorch() -> None:
    program = "import sys, unet.train.batches, unet.train.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
