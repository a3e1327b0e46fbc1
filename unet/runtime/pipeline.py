"""How the jobs that apply a model run on Ray Data: pools of workers, and rows that each carry one pickled object.

A row is neither merged nor cut on the way, and flows as soon as it is made.
"""

import logging
import pickle
from collections.abc import Generator, Iterable
from typing import Any, Protocol

import numpy as np
import ray
import ray.data

from unet.runtime.session import capacity, connect
from unet.settings import RequestError

IN_FLIGHT = 2
"""Rows that a worker has at a time: one is read and written while the other is predicted."""

Row = dict[str, Any]


class Workers(Protocol):
    """Settings that say how many workers."""

    @property
    def gpu(self) -> bool:
        """Whether each has a GPU."""

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Least and most, if --workers says."""


def pack(content: Any) -> Row:
    """Return `content` as the one row that Ray Data sees."""
    return {"content": np.array([pickle.dumps(content, protocol=5)], object)}


def unpack(row: Row) -> Any:
    """Return what `pack` was given."""
    return pickle.loads(row["content"][0])


def dataset_of(contents: Iterable[Any]) -> ray.data.Dataset:
    """Return a dataset with one row for each of `contents`."""
    return ray.data.from_items([{"content": pickle.dumps(content, protocol=5)} for content in contents])


def process_rows(
    dataset: ray.data.Dataset, worker: type, arguments: tuple[Any, ...], workers: tuple[int, int], *, gpu: bool
) -> ray.data.Dataset:
    """Return `dataset` with each row processed by a pool of workers that stay: `worker(*arguments)` in least to most
    processes, each with a GPU or a CPU. A worker is given the next row while it works on one."""
    pool = ray.data.ActorPoolStrategy(
        min_size=workers[0],
        max_size=workers[1],
        max_tasks_in_flight_per_actor=2 * IN_FLIGHT,
        max_concurrent_calls_per_actor=IN_FLIGHT,
        enable_true_multi_threading=True,
    )
    # Of a machine with GPUs each worker has its share of the CPUs.
    resources: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1} if gpu else {"num_cpus": 1}
    return dataset.map_batches(worker, fn_constructor_args=arguments, batch_size=1, compute=pool, **resources)


def stream(dataset: ray.data.Dataset) -> Generator[Any, None, None]:
    """Execute `dataset` and yield what its last step packed, as it comes."""
    context = dataset.context
    context.target_max_block_size = 1  # a row is a block
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # nodes may be long in coming
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends a run is raised, and printed once
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for data in batch["content"]:
            yield pickle.loads(data)


def connect_workers(settings: Workers) -> tuple[int, int]:
    """Connect to Ray. Return least and most workers: what --workers says, or up to one for each CPU or GPU that the
    cluster has or may grow to.

    Raises:
        RequestError: --gpu without a GPU.
    """
    connect(worker_output=False)
    kind = "GPU" if settings.gpu else "CPU"
    available = capacity(kind)
    if settings.gpu and not available and settings.worker_range is None:
        raise RequestError("--gpu: the cluster has no GPU; leave the flag out, or give --workers to wait for some")
    return settings.worker_range or (1, max(1, available))
