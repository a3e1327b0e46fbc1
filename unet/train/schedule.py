"""The order of training: which images make up the batch of each optimizer step.

Pure functions of (seed, step), so that any step can be entered at any time by any number of workers. Training walks
through one endless sequence of passes over the rows, each pass in a fresh order; step k takes the k-th batch of it.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class Sample(NamedTuple):
    """One image of a batch. Together with the seed it fixes the image's augmentation."""

    pass_index: int
    """How many whole passes over the rows came before."""
    row: int


def samples_of_step(step: int, *, seed: int, rows: int, batch: int) -> list[Sample]:
    """Return the global batch of a step (from 0): `batch` samples, the same for every number of workers."""
    places = range(step * batch, (step + 1) * batch)
    return [Sample(place // rows, int(_order(seed, place // rows, rows)[place % rows])) for place in places]


def share(items: Sequence[T], rank: int, world: int) -> Sequence[T]:
    """Return the rank's contiguous part; all ranks' parts are a partition, their sizes differ by at most 1."""
    return items[rank * len(items) // world : (rank + 1) * len(items) // world]


@lru_cache(maxsize=4)
def _order(seed: int, pass_index: int, rows: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, pass_index)).permutation(rows)
