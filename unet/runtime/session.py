"""The connection to Ray: the cluster that is at hand, or else a Ray of our own on this machine alone."""

import logging
import os
import socket
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unet.runtime.memory import RETAINING
from unet.runtime.ray_internals import LOCAL_ENVIRONMENT, begun_cluster, max_resources
from unet.runtime.stop import preserve_signal_handlers
from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import Unreachable
from unet.storage.objects import join_uri


def connect(*, worker_output: bool) -> bool:
    """Connect to the cluster that RAY_ADDRESS names or `ray start` began on this machine, or start a Ray that ends with
    this process (RAY_ADDRESS=local: in any case). Return whether Ray was started here.

    `worker_output`: show what the workers of a Ray started here print.

    Raises:
        RequestError: RAY_ADDRESS is no address of a cluster.
        Unreachable: no cluster answers there.
    """
    if ray.is_initialized():
        return False
    named = os.environ.get("RAY_ADDRESS")
    address = named or begun_cluster()
    if named and "://" in named and not named.startswith("ray://"):
        raise RequestError(f"RAY_ADDRESS {named}: is where jobs are submitted; give HOST:6379, or unset it")
    if address not in (None, "local"):
        try:
            with preserve_signal_handlers():
                ray.init(address=address, logging_level=logging.WARNING)
        except ConnectionError:
            if named:
                reason = "no cluster answers there; start it, or unset it"
                raise Unreachable(f"RAY_ADDRESS {named}", reason) from None
        else:
            return False
    for name, value in (LOCAL_ENVIRONMENT | RETAINING).items():
        os.environ.setdefault(name, value)
    with preserve_signal_handlers():
        ray.init(address="local", logging_level=logging.ERROR, include_dashboard=False, log_to_driver=worker_output)
    return True


def join_cluster() -> None:
    """Connect to the cluster that RAY_ADDRESS names, as it does for submitted jobs; do nothing if it names none."""
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        with suppress(RequestError, Unreachable):  # who needs it will say so
            connect(worker_output=False)


def capacity(kind: str) -> int:
    """Return how many CPUs or GPUs the cluster has, or may grow to where it has an autoscaler."""
    return max(int(ray.cluster_resources().get(kind, 0)), int(max_resources().get(kind, 0)))


def check_shared(paths: Mapping[str, str], written: Mapping[str, str]) -> None:
    """Raise RequestError, naming the flag, if one of the `paths` is local and not seen by every machine, or what is
    written to a folder of `written` is not."""
    local, folders = ({flag: uri for flag, uri in uris.items() if "://" not in uri} for uris in (paths, written))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not (local or folders) or len(nodes) < 2:
        return
    probe = f".seen-{uuid.uuid4().hex}"  # a name that no other folder has
    for folder in folders.values():
        store.write(join_uri(folder, probe), b"")
    try:
        _check_on_every_node(nodes, local | {flag: join_uri(folder, probe) for flag, folder in folders.items()})
    finally:
        for folder in folders.values():
            store.open_store(folder).delete([probe])


def _check_on_every_node(nodes: list[dict[str, Any]], local: Mapping[str, str]) -> None:
    tasks = [
        ray.remote(_missing)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(local)
        for node in nodes
    ]
    for node, missing in zip(nodes, ray.get(tasks), strict=True):
        for flag in missing:
            raise _unseen(flag, local[flag], node["NodeManagerAddress"])


def check_seen_here(paths: Mapping[str, str]) -> None:
    """Raise RequestError, naming the flag, if one of the `paths` is local and not seen by this machine, which may have
    joined after `check_shared`."""
    for flag in _missing({flag: path for flag, path in paths.items() if "://" not in path}):
        raise _unseen(flag, paths[flag], socket.gethostname())


def _unseen(flag: str, path: str, machine: str) -> RequestError:
    return RequestError(
        f"{flag} {path}: machine {machine} of the cluster does not see this; give s3://bucket/prefix, or a folder that "
        "all machines share"
    )


def in_job_directory(path: str) -> bool:
    """Return whether a path lies in the working directory that Ray made for this job, and removes some time later."""
    directory = ray.get_runtime_context().runtime_env.get("working_dir")
    return bool(directory) and "://" not in path and Path(path).resolve().is_relative_to(Path.cwd().resolve())


def _missing(paths: Mapping[str, str]) -> list[str]:
    return [flag for flag, path in paths.items() if not os.path.exists(path)]
