"""The connection to Ray: the cluster that is at hand, or else a Ray of our own on this machine alone."""

import logging
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state
from ray._private.utils import read_ray_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unet.runtime.memory import KEEPING
from unet.runtime.stop import preserve_signal_handlers
from unet.settings import RequestError
from unet.storage import store
from unet.storage.listed import join

METRICS = "RAY_enable_metrics_collection"
"""The variable by which a Ray gathers metrics, or not. Ray's workers inherit it."""


def connect(*, worker_output: bool) -> bool:
    """Connects to the cluster that RAY_ADDRESS names or `ray start` began on this machine, or starts a Ray that ends
    with this process (RAY_ADDRESS=local: in any case). Returns whether Ray was started here.

    `worker_output`: shows what a local worker prints. Without it Ray's own remarks, which it would be mixed with, are
    kept in Ray's log files too.

    Raises:
        RequestError: no cluster answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        return False
    named = os.environ.get("RAY_ADDRESS")
    address = named or read_ray_address()
    if address and address != "local":
        try:
            with preserve_signal_handlers():
                ray.init(address=address, logging_level=logging.WARNING)
        except ConnectionError:
            if named:
                raise RequestError(f"RAY_ADDRESS {named}: no cluster answers there; start it, or unset it") from None
        else:
            return False
    # Little may run beside the work: on a laptop Ray's idle processes delay every step a little, nobody reads what they
    # gather for a dashboard that is not there, and workers are begun for tasks that never come.
    unwanted = "task_events_report_interval_ms", "prestart_worker_first_driver", "worker_niceness"
    for variable in (METRICS, *(f"RAY_{name}" for name in unwanted)):
        os.environ.setdefault(variable, "0")
    for name in ("ENABLE_PREEMPTION_WATCHER", "METRICS_ENABLED"):
        os.environ.setdefault(f"RAY_TRAIN_{name}", "0")
    # Processes that make batches keep what they have loaded and decoded while training uses up a plan's.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "3600000")
    # Else the machine is measured every few seconds, for that dashboard, and new log files are looked for all the time.
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
    os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
    os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "1")
    for name, value in KEEPING.items():
        os.environ.setdefault(name, value)
    if not worker_output:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's own actors are told off as errors
    with preserve_signal_handlers():
        ray.init(address="local", logging_level=logging.ERROR, include_dashboard=False, log_to_driver=worker_output)
    return True


def keep_no_statistics() -> None:
    """Lets the plans of this process tell nobody of what they do, if nobody gathers metrics: the actor that would keep
    it for a dashboard is a process more, and a plan waits for it to start."""
    if os.environ.get(METRICS) != "0":
        return
    from ray.data._internal.stats import _StatsManager  # takes a second, which a driver may not need

    told = "register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics"
    untold: dict[str, Any] = dict.fromkeys(told, lambda *_, **__: None)
    untold["gen_dataset_id_from_stats_actor"] = lambda: uuid.uuid4().hex
    for name, function in untold.items():
        setattr(_StatsManager, name, staticmethod(function))


def join_cluster() -> None:
    """Connects to the cluster that RAY_ADDRESS names, if it names one: as it does for submitted jobs."""
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        with suppress(RequestError):  # who needs it will say so
            connect(worker_output=False)


def capacity(kind: str) -> int:
    """How many CPUs or GPUs the cluster has, or may grow to where it has an autoscaler."""
    limits = state.get_max_resources_from_cluster_config() or {}
    return max(int(ray.cluster_resources().get(kind, 0)), int(limits.get(kind, 0)))


def check_shared(paths: Mapping[str, str], written: Mapping[str, str]) -> None:
    """Raises RequestError, naming the flag, if one of the `paths` is local and not seen by every machine, or what is
    written to a folder of `written` is not."""
    local, folders = ({flag: uri for flag, uri in uris.items() if "://" not in uri} for uris in (paths, written))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not (local or folders) or len(nodes) < 2:
        return
    seen = f".seen-{uuid.uuid4().hex}"  # a name that no other folder has
    for folder in folders.values():
        store.write(join(folder, seen), b"")
    try:
        _check_on_every_node(nodes, local | {flag: join(folder, seen) for flag, folder in folders.items()})
    finally:
        for folder in folders.values():
            store.open_store(folder).delete([seen])


def _check_on_every_node(nodes: list[dict[str, Any]], local: Mapping[str, str]) -> None:
    looking = [
        ray.remote(_missing)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(local)
        for node in nodes
    ]
    for node, missing in zip(nodes, ray.get(looking), strict=True):
        for flag in missing:
            raise RequestError(
                f"{flag} {local[flag]}: machine {node['NodeManagerAddress']} of the cluster does not see this; "
                "give s3://bucket/prefix, or a folder that all machines share"
            )


def in_job_directory(path: str) -> bool:
    """Whether a path lies in the working directory that Ray made for this job, and removes some time after it."""
    shipped = ray.get_runtime_context().runtime_env.get("working_dir")
    return bool(shipped) and "://" not in path and Path(path).resolve().is_relative_to(Path.cwd().resolve())


def _missing(paths: Mapping[str, str]) -> list[str]:
    return [flag for flag, path in paths.items() if not os.path.exists(path)]
