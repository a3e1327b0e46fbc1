"""Ray Train as this project uses it: how workers are laid out on machines, and which failures end a run.

A worker that dies is replaced and all go on from the last checkpoint. What would come again ends the run at once. The
driver and Ray's controller import this module; PyTorch, which takes seconds to import, only the workers.
"""

import math
import os
import socket
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psutil
import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from unet.runtime.memory import retain_freed_memory
from unet.runtime.ray_internals import (
    ELASTIC_ENVIRONMENT,
    TRAIN_ENVIRONMENT,
    ControllerCallback,
    DefaultFailurePolicy,
    FailureDecision,
    PlacementGroupCleanerCallback,
)
from unet.runtime.session import capacity
from unet.runtime.stop import skip_destructors
from unet.settings import RequestError
from unet.train.batches import BatchStream
from unet.train.faults import fault_of, reason_of
from unet.train.run import TrainingRun

CONNECTED = timedelta(minutes=30)
"""For which a worker waits for the others, before it takes them for lost."""

DISCONNECT_SECONDS = 30.0
"""For which workers may part at the end, before they are ended."""


class Trainer(DataParallelTrainer):
    """Ray's trainer with a failure policy of its own, whose controller ends for certain."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        elastic = isinstance(self.scaling_config.num_workers, tuple)
        for name, value in (TRAIN_ENVIRONMENT | (ELASTIC_ENVIRONMENT if elastic else {})).items():
            os.environ.setdefault(name, value)
        arguments["failure_policy"] = FailurePolicy(self.run_config.failure_config)  # type: ignore[arg-type]
        callbacks = [each for each in arguments["callbacks"] if not isinstance(each, PlacementGroupCleanerCallback)]
        arguments["callbacks"] = [*callbacks, _EndController()]
        return super()._initialize_and_run_controller(**arguments)


class _EndController(ControllerCallback):
    def after_controller_start(self, train_run_context: Any) -> None:
        skip_destructors()


def train_worker(config: dict[str, TrainingRun]) -> None:
    """Train as `config["run"]` says: what Ray Train calls in each worker."""
    run = config["run"]
    retain_freed_memory()
    threads, workers = _threads(), ray.train.get_context().get_world_size()
    stream = BatchStream(
        run.batch_spec, processes=run.data_cpus or threads, workers=workers, anywhere=run.data_cpus > 0
    )
    from unet.train.loop import train_all_steps  # while what makes batches starts

    train_all_steps(run, stream, threads)


def _threads() -> int:
    """Return this worker's part of its machine's CPUs; Ray would allow one thread for each reserved CPU."""
    here = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == here)
    workers_here: int = ray.train.get_context().get_local_world_size()
    return max(1, int(cpus) // workers_here)


class TorchConfig(BackendConfig):
    """Workers whose PyTorch is connected, at the addresses by which Ray knows their machines."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _TorchBackend


class _TorchBackend(Backend):
    """Ray's own imports PyTorch wherever it is named, and lets Gloo listen at the address of the machine's name, which
    on many is 127.0.1.1: workers on several machines then do not connect."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        workers = len(worker_group)
        if workers > 1:
            backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
            meeting = worker_group.execute_single(0, _free_address)
            numbered = range(workers)
            ray.get([worker_group.execute_single_async(n, _connect, backend, meeting, n, workers) for n in numbered])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        if len(worker_group) > 1:
            with suppress(GetTimeoutError):
                ray.get(worker_group.execute_async(_disconnect), timeout=DISCONNECT_SECONDS)


def _free_address() -> tuple[str, int]:
    """Return this machine's address as Ray knows it, and a port that is free."""
    address = ray.util.get_node_ip_address()
    with socket.create_server(("", 0)) as server:
        return address, server.getsockname()[1]


def _connect(backend: str, meeting: tuple[str, int], rank: int, workers: int) -> None:
    import torch.distributed as dist

    here = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(one.address == here for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ |= {"MASTER_ADDR": meeting[0], "MASTER_PORT": str(meeting[1])}
    dist.init_process_group(backend, rank=rank, world_size=workers, timeout=CONNECTED)


def _disconnect() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


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
