"""Collective operations over the ranks of a training run. With one rank alone they return what they are given."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_reduce_sum(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the sum of each tensor over all ranks, without gradient, in one message; all of one dtype and device."""
    values = [tensor.detach() for tensor in tensors]
    if world_size() == 1:
        return values
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


def broadcast_object(value: T) -> T:
    """Return the value that rank 0 calls this with."""
    if world_size() == 1:
        return value
    objects = [value]
    dist.broadcast_object_list(objects)
    return objects[0]


def all_reduce_mean_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all ranks, in place."""
    if tensors and world_size() > 1:
        for tensor, total in zip(tensors, all_reduce_sum(tensors), strict=True):
            tensor.copy_(total / world_size())
