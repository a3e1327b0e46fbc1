"""Sums over the workers that train together, its ranks. Where there is one alone, all is as it was given."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_reduce_sum(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all ranks, without gradient. One message; all must be of one dtype and device."""
    values = [tensor.detach() for tensor in tensors]
    if world_size() == 1:
        return values
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


def broadcast_object(value: T) -> T:
    """What rank 0 calls this with."""
    if world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said)
    return said[0]


def all_reduce_mean_(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its mean over all ranks."""
    if tensors and world_size() > 1:
        for tensor, total in zip(tensors, all_reduce_sum(tensors), strict=True):
            tensor.copy_(total / world_size())
