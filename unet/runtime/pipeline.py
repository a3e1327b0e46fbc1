"""How the jobs that apply a model run on Ray Data: pools of workers, and rows that each carry one pickled thing.

A row is neither merged nor cut on the way, and flows as soon as it is made.
"""

import logging
import pickle
from collections.abc import Generator, Iterable
from typing import Any, Protocol

import numpy as np
import ray
import ray.data

from unet.runtime.priority import silence_bystanders
from unet.runtime.session import capacity, connect, keep_no_statistics
from unet.settings import RequestError

IN_FLIGHT = 2
"""Rows that a worker has at a time: one is read and written while the other is predicted."""

Row = dict[str, Any]


class Workers(Protocol):
    """Settings that say how many workers."""

    @property
    def gpu(self) -> bool:
        """One GPU for each."""

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Least and most, if --workers says."""


def pack(content: Any) -> Row:
    """What travels, as the one row that Ray Data sees."""
    return {"content": np.array([pickle.dumps(content, protocol=5)], object)}


def unpack(row: Row) -> Any:
    """The inverse of `pack`."""
    return pickle.loads(row["content"][0])


def dataset_of(contents: Iterable[Any]) -> ray.data.Dataset:
    """A plan that begins with these."""
    return ray.data.from_items([{"content": pickle.dumps(content, protocol=5)} for content in contents])


def pool(least: int, most: int | None) -> ray.data.ActorPoolStrategy:
    """Workers that stay, and are given a row each while they do another."""
    return ray.data.ActorPoolStrategy(
        min_size=least,
        max_size=most,
        max_tasks_in_flight_per_actor=2 * IN_FLIGHT,
        max_concurrent_calls_per_actor=IN_FLIGHT,
        enable_true_multi_threading=True,
    )


def running(plan: ray.data.Dataset) -> Generator[Any, None, None]:
    """What the last step of `plan` packed, as it comes."""
    context = plan.context
    context.target_max_block_size = 1  # a row is a block
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # nodes may be long in coming
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends a run is raised, and said once
    for number, batch in enumerate(plan.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)):
        if number == 0:  # all processes are there
            silence_bystanders()
        for data in batch["content"]:
            yield pickle.loads(data)


def connected_workers(settings: Workers) -> tuple[int, int]:
    """Connects; returns least and most workers: what --workers says, or up to one for each CPU or GPU that the cluster
    has or may grow to.

    Raises:
        RequestError: --gpu without a GPU.
    """
    connect(worker_output=False)
    keep_no_statistics()
    kind = "GPU" if settings.gpu else "CPU"
    there = capacity(kind)
    if settings.gpu and not there and settings.worker_range is None:
        raise RequestError("--gpu: the cluster has no GPU; leave the flag out, or give --workers to wait for some")
    return settings.worker_range or (1, max(1, there))
