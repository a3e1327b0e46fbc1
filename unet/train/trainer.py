"""Ray Train as this project uses it: how workers are laid out on machines, and which failures end a run.

A worker that dies is replaced and all go on from the last checkpoint. What would come again ends the run at once.
"""

import math
import os
from typing import Any

import psutil
import ray
import ray.train.torch
from ray.exceptions import RayError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from unet.runtime.ray_internals import (
    ELASTIC_ENVIRONMENT,
    TRAIN_ENVIRONMENT,
    ControllerCallback,
    DatasetsCallback,
    DefaultFailurePolicy,
    FailureDecision,
    PlacementGroupCleanerCallback,
    TorchBackend,
)
from unet.runtime.session import capacity
from unet.runtime.stop import skip_destructors
from unet.settings import RequestError
from unet.train.faults import fault_of, reason_of

SPINS = "10000"
"""How often a thread that waits for the others of PyTorch looks before it leaves its processor: about a tenth of a
millisecond. By default it is thirty times that, on a processor that may be what the others wait for: beside two busy
programs a step on two processors took 6.5 to 12.6 seconds, and with this 3.5; alone 1.3 with both."""


class Trainer(ray.train.torch.TorchTrainer):
    """A TorchTrainer with a failure policy of its own, whose controller ends for certain."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        elastic = isinstance(self.scaling_config.num_workers, tuple)
        for name, value in (TRAIN_ENVIRONMENT | (ELASTIC_ENVIRONMENT if elastic else {})).items():
            os.environ.setdefault(name, value)
        arguments["failure_policy"] = FailurePolicy(self.run_config.failure_config)  # type: ignore[arg-type]
        left_out = PlacementGroupCleanerCallback, DatasetsCallback
        callbacks = [each for each in arguments["callbacks"] if not isinstance(each, left_out)]
        arguments["callbacks"] = [*callbacks, _EndController()]
        return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]


class _EndController(ControllerCallback):
    def after_controller_start(self, train_run_context: Any) -> None:
        skip_destructors()


class TorchConfig(ray.train.torch.TorchConfig):
    """Workers that connect at the addresses by which Ray knows their machines: Gloo would listen at the address of the
    machine's name, which on many is 127.0.1.1."""

    @property
    def backend_cls(self) -> type[TorchBackend]:
        return _Backend


class _Backend(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_gloo_interface)
        super().on_start(worker_group, backend_config)


def _set_gloo_interface() -> None:
    address = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


class FailurePolicy(DefaultFailurePolicy):
    """Ray Train's own, except that lasting faults end the run, and workers lost while they connect are retried."""

    _connections_lost = 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if fault_of(training_failed_error) is not None:
            return FailureDecision.RAISE
        reason = reason_of(training_failed_error)
        if isinstance(getattr(training_failed_error, "controller_failure", None), RayError):
            self._connections_lost += 1
            print(f"workers did not meet, trying again ({reason})", flush=True)
            again = self._connections_lost <= self.failure_config.max_failures
            return FailureDecision.RETRY if again else FailureDecision.RAISE
        decision = super().make_decision(training_failed_error)
        if decision == FailureDecision.RETRY and isinstance(training_failed_error, ControllerError):
            print("still waiting for machines", flush=True)
        elif decision == FailureDecision.RETRY:
            print(f"workers are lost, going on from the last checkpoint ({reason})", flush=True)
        return decision


def worker_environment() -> dict[str, Any]:
    """Return the runtime environment of a process that computes as a worker does."""
    return {"env_vars": {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINS)}}


def resources(workers: int, *, least: int, gpu: bool, local: bool) -> tuple[dict[str, float], int]:
    """Return what each of up to `workers` reserves of its machine, and how many CPUs are left for the data of each.

    On GPUs a worker reserves one CPU, and Ray Data has the others. On CPUs workers reserve them all, so that there are
    never more on a machine than it should have; what makes their batches runs beside them. A cluster may still grow;
    this machine (`local`) does not.

    Raises:
        RequestError: so many cannot be had, or nothing is left to make batches on.
    """
    kind = "GPU" if gpu else "CPU"
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    hosts = [machine for machine in machines if machine.get(kind)]
    there = int(sum(host[kind] for host in hosts))
    if gpu and not there and (local or not capacity("GPU")):
        raise RequestError("--gpu: the cluster has no GPU; leave the flag out to train on CPUs")
    if workers > there and local:
        raise RequestError(f"--workers: {workers} workers need a {kind} each, and this machine has {there}; give fewer")
    if least > there:
        print(f"--workers: waiting for {least} {kind}s; the cluster has {there}", flush=True)
    if not gpu:
        of_a_machine = -(-workers // max(1, len(hosts)))
        cpus = max(of_a_machine, min((host["CPU"] for host in hosts), default=1.0))
        return {"CPU": math.floor(1e4 * cpus / of_a_machine) / 1e4}, 0  # Ray counts in ten-thousandths
    cpus = sum(machine.get("CPU", 0.0) for machine in machines)
    hands = max(1, min(workers, there))  # that there are now: more may bring their own CPUs
    data = int(cpus / hands) - 1
    if data < 1 and least <= there:
        raise RequestError(
            f"--workers: {hands} workers on GPUs and the making of their batches need 2 CPUs each, and the cluster "
            f"has {cpus:g}; give fewer workers, or add machines with CPUs"
        )
    return {"GPU": 1.0, "CPU": 1.0}, max(1, data)
