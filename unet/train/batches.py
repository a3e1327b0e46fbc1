"""Batches for training, made by Ray Data: read, decoded, oriented and augmented, in the order asked for.

A `BatchRequest` travels to a task and comes back as one row with one `Batch` (images: NHWC uint8; masks: NHW uint8
class indices), so that batches are neither split nor merged on the way. A faulty file becomes the row's `fault`, which
ends the run naming the file, and not a traceback from somewhere in the cluster.
"""

import logging
import math
import pickle
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data
from ray.data.block import BlockAccessor
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unet.data.image import ImageError
from unet.runtime.stop import skip_destructors
from unet.settings import RequestError
from unet.train.examples import Batch, BatchRequest, BatchSpec, make_batch

PLAN_BYTES = 256 << 20
"""About how much a plan makes, at most. The next plan runs while the batches of one are used, so two lie in memory."""

STORE_SHARE = 8
"""A plan makes no more than this part of the object store, shared by all workers: two lie in it, beside what Ray needs
to make the second."""

FIRST_PLAN, LONGEST_PLAN = 4, 1024
"""Batches of the first plan, which is waited for, and of the longest. Each plan is up to four times its predecessor."""

BATCHES_PER_TASK = 4
"""Batches that a task makes one after the other: to start a task takes as long as to make a small batch."""


class BatchStream:
    """Makes batches for one of `workers`, by up to `tasks` Ray tasks at a time. What runs the tasks starts at once.

    Tasks run on this machine, on what training leaves of its processors; or `anywhere`, on a CPU of their own each.
    """

    def __init__(self, spec: BatchSpec, *, tasks: int, workers: int = 1, anywhere: bool = False) -> None:
        here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._spec = spec
        self._actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_BatchActor).remote(
            spec, tasks, None if anywhere else here
        )
        object_store = ray.cluster_resources().get("object_store_memory", math.inf)
        self._limit = min(PLAN_BYTES, int(object_store / STORE_SHARE / workers))

    def batches(self, requests: Iterable[BatchRequest]) -> Iterator[Batch]:
        """Yield the batches of `requests`, in their order.

        Raises:
            RequestError: a file that cannot be used; names it.
        """
        running = (self._actor.run_plan.remote(plan) for plan in _plans(requests, self._spec, self._limit))
        following = next(running, None)
        while following is not None:
            blocks = ray.get(following)
            following = next(running, None)
            for block in blocks:
                row = BlockAccessor.for_block(ray.get(block)).to_batch_format("numpy")
                assert len(row["fault"]) == 1, "a block is one batch"
                if row["fault"][0]:
                    raise RequestError(str(row["fault"][0]))
                yield Batch(row["images"][0], row["masks"][0])


def _plans(requests: Iterable[BatchRequest], spec: BatchSpec, limit: int) -> Iterator[list[BatchRequest]]:
    """Cut `requests` into plans of `limit` bytes at most. Plans cross epochs and validations: short ones pay no
    start-up."""
    length, plan, size = FIRST_PLAN, list[BatchRequest](), 0
    for request in requests:
        if len(plan) == length or (plan and size + spec.bytes_of(request) > limit):
            yield plan
            length, plan, size = min(4 * length, LONGEST_PLAN), [], 0
        plan.append(request)
        size += spec.bytes_of(request)
    if plan:
        yield plan


class _BatchActor:
    """Runs the plans, in a process of its own: Ray's executor would take much of a processor, and Python's lock, from
    the process that trains."""

    def __init__(self, spec: BatchSpec, tasks: int, strategy: Any) -> None:
        skip_destructors()
        self.spec, self.tasks, self.strategy = spec, tasks, strategy

    def run_plan(self, plan: list[BatchRequest]) -> list[Any]:
        """Return the batches of `plan`, one block each, as references to the object store."""
        # Not from_arrow, which runs a task of one CPU for each table and would wait for one for ever.
        rows = ray.data.from_items(
            [{"request": pickle.dumps(request)} for request in plan],
            override_num_blocks=max(len(plan) // BATCHES_PER_TASK, min(len(plan), self.tasks)),
        )
        dataset = rows.map_batches(
            _MakeBatch(self.spec),
            batch_size=1,
            compute=ray.data.TaskPoolStrategy(size=self.tasks),
            num_cpus=1 if self.strategy is None else 0,
        )
        if self.strategy is not None:
            with warnings.catch_warnings():  # Ray deprecates this, and has nothing in its place
                warnings.simplefilter("ignore", DeprecationWarning)
                dataset.context.scheduling_strategy = self.strategy
        dataset.context.target_max_block_size = 1  # a batch is a block
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        dataset.context.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it says that progress bars are off
        return [ref for bundle in dataset.materialize().iter_internal_ref_bundles() for ref in bundle.block_refs]


class _MakeBatch:
    """`make_batch` between rows."""

    def __init__(self, spec: BatchSpec) -> None:
        self.spec = spec

    def __call__(self, row: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        try:
            batch, fault = make_batch(pickle.loads(row["request"][0]), self.spec), ""
        except ImageError as error:
            batch, fault = Batch(np.zeros((1, 1, 1, 3), np.uint8), np.zeros((1, 1, 1), np.uint8)), str(error)
        return {"images": batch.images[None], "masks": batch.masks[None], "fault": np.array([fault])}
