"""A labelled set as Ray Data: plans that read, decode, orient and augment, one row per batch.

A batch travels as a row of its own, so that it is neither split nor merged on the way and arrives in the order asked
for. images: NHWC uint8; masks: NHW uint8 class indices. A faulty file becomes the batch's `fault`, which ends the run
naming the file, and not a traceback from somewhere in the cluster.
"""

import logging
import math
import pickle
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data
from PIL import Image
from ray.data.block import BlockAccessor
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unet.data.augment import augment
from unet.data.image import Array, ImageError, fit_image, fit_mask
from unet.data.labelled_set import Pair, read_pair
from unet.data.labels import LabelSet
from unet.data.settings import AugmentSettings
from unet.runtime.priority import yield_to_training
from unet.runtime.session import keep_no_statistics
from unet.runtime.stop import skip_destructors
from unet.settings import Geometry, RequestError, Window
from unet.train.schedule import Sample

SPAN_BYTES = 256 << 20
"""About how much a plan makes, at most. The next plan runs while the batches of one are used, so two lie in memory."""

STORE_SHARE = 8
"""A plan makes no more than this part of the object store, shared by all workers: two lie in it, beside what Ray needs
to make the second."""

FIRST_SPAN, LONGEST_SPAN = 4, 1024
"""Batches of the first plan, which is waited for, and of the longest. Each plan is up to four times its predecessor."""

TOGETHER = 4
"""Batches that a task makes one after the other: to start a task takes as long as to make a small batch."""

KEPT_BYTES = 384 << 20
"""Decoded pairs that a process which makes batches keeps, at most."""

BYTES_OF_PIXEL = 5
"""Of a decoded pair: Pillow keeps RGB in four, and a mask has one."""

_kept: dict[Pair, tuple[Image.Image, Array]] = {}
"""The decoded pairs of this process. A process works for one run, hence for one label set and window."""


@dataclass(frozen=True)
class BatchSpec:
    """How pairs become arrays."""

    labels: LabelSet
    geometry: Geometry
    augment: AugmentSettings
    seed: int
    largest: tuple[int, int] = (0, 0)
    """Height and width of the largest image that is validated whole."""
    window: Window | None = None
    """How 16-bit images are scaled."""

    def bytes_of(self, work: "BatchRequest") -> int:
        """About how many bytes a batch has: RGB and mask."""
        whole = self.geometry.kind == "native" and not work.draws
        return 4 * len(work.pairs) * math.prod(self.largest if whole else self.geometry.size)


@dataclass(frozen=True)
class BatchRequest:
    """A batch to be made: of augmented training images (`draws` given), or of validation images."""

    pairs: tuple[Pair, ...]
    draws: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Batch:
    """images: NHWC uint8; masks: NHW uint8."""

    images: Array
    masks: Array


class BatchStream:
    """Makes batches for one of `workers`, by up to `tasks` Ray tasks at a time. What runs the tasks starts at once.

    Tasks run on this machine, on what training leaves of its processors; or `anywhere`, on a CPU of their own each.
    """

    def __init__(self, view: BatchSpec, *, tasks: int, workers: int = 1, anywhere: bool = False) -> None:
        here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._view = view
        self._feeder: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_BatchActor).remote(
            view, tasks, None if anywhere else here
        )
        store = ray.cluster_resources().get("object_store_memory", math.inf)
        self._limit = min(SPAN_BYTES, int(store / STORE_SHARE / workers))

    def batches(self, work: Iterable[BatchRequest]) -> Iterator[Batch]:
        """The batches of `work`, in its order.

        Raises:
            RequestError: a file that cannot be used; names it.
        """
        making = (self._feeder.make.remote(span) for span in _spans(work, self._view, self._limit))
        coming = next(making, None)
        while coming is not None:
            made = ray.get(coming)
            coming = next(making, None)
            for block in made:
                row = BlockAccessor.for_block(ray.get(block)).to_batch_format("numpy")
                assert len(row["fault"]) == 1, "a block is one batch"
                if row["fault"][0]:
                    raise RequestError(str(row["fault"][0]))
                yield Batch(row["images"][0], row["masks"][0])


def _spans(work: Iterable[BatchRequest], view: BatchSpec, limit: int) -> Iterator[list[BatchRequest]]:
    """`work` in pieces of `limit` bytes at most. Spans cross epochs and validations: short ones pay no start-up."""
    length, span, size = FIRST_SPAN, list[BatchRequest](), 0
    for item in work:
        if len(span) == length or (span and size + view.bytes_of(item) > limit):
            yield span
            length, span, size = min(4 * length, LONGEST_SPAN), [], 0
        span.append(item)
        size += view.bytes_of(item)
    if span:
        yield span


class _BatchActor:
    """Runs the plans, in a process of its own: Ray's executor would take much of a processor, and Python's lock, from
    the process that trains."""

    def __init__(self, view: BatchSpec, tasks: int, place: Any) -> None:
        yield_to_training()
        skip_destructors()
        keep_no_statistics()
        self.view, self.tasks, self.place = view, tasks, place

    def make(self, span: list[BatchRequest]) -> list[Any]:
        """The batches of `span`, one block each, as references to the object store."""
        # Not from_arrow, which runs a task of one CPU for each table and would wait for one for ever.
        rows = ray.data.from_items(
            [{"work": pickle.dumps(item)} for item in span],
            override_num_blocks=max(len(span) // TOGETHER, min(len(span), self.tasks)),
        )
        plan = rows.map_batches(
            _MakeBatch(self.view),
            batch_size=1,
            compute=ray.data.TaskPoolStrategy(size=self.tasks),
            num_cpus=1 if self.place is None else 0,
        )
        if self.place is not None:
            with warnings.catch_warnings():  # Ray deprecates this, and has nothing in its place
                warnings.simplefilter("ignore", DeprecationWarning)
                plan.context.scheduling_strategy = self.place
        plan.context.target_max_block_size = 1  # a batch is a block
        plan.context.enable_progress_bars = False
        plan.context.print_on_execution_start = False
        plan.context.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it says that progress bars are off
        return [ref for bundle in plan.materialize().iter_internal_ref_bundles() for ref in bundle.block_refs]


def make_batch(work: BatchRequest, view: BatchSpec) -> Batch:
    """Reads and decodes the pairs of `work`; a training batch is augmented.

    Raises:
        ImageError: names the file.
    """
    made = []
    for place, pair in enumerate(work.pairs):
        image, mask = _read_once(pair, view)
        if work.draws:
            rng = np.random.default_rng((view.seed, *work.draws[place]))
            made.append(augment(image, mask, geometry=view.geometry, settings=view.augment, rng=rng))
        else:
            made.append((fit_image(np.asarray(image), view.geometry), fit_mask(mask, view.geometry)))
    return Batch(np.stack([image for image, _ in made]), np.stack([mask for _, mask in made]))


def _read_once(pair: Pair, view: BatchSpec) -> tuple[Image.Image, Array]:
    """`read_pair`, which is most of the work of a batch, remembered as far as `KEPT_BYTES` go."""
    if pair not in _kept:
        image, mask = read_pair(pair, view.labels, window=view.window)
        if BYTES_OF_PIXEL * (sum(kept.size for _, kept in _kept.values()) + mask.size) > KEPT_BYTES:
            return image, mask
        _kept[pair] = image, mask
    return _kept[pair]


class _MakeBatch:
    """`make_batch` between rows."""

    def __init__(self, view: BatchSpec) -> None:
        self.view = view

    def __call__(self, row: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        yield_to_training()
        try:
            batch = make_batch(pickle.loads(row["work"][0]), self.view)
        except ImageError as error:
            nothing = Batch(np.zeros((1, 1, 1, 3), np.uint8), np.zeros((1, 1, 1), np.uint8))
            return _columns(nothing, str(error))
        return _columns(batch, "")


def _columns(batch: Batch, fault: str) -> dict[str, npt.NDArray[Any]]:
    return {"images": batch.images[None], "masks": batch.masks[None], "fault": np.array([fault])}
