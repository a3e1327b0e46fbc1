"""How weights are updated: Muon for convolution kernels, AdamW for the rest, and the learning rate of each step.

Muon (Jordan et al., 2024) orthogonalises the momentum of a matrix before it is applied; a kernel is the matrix of
its first dimension by all others. Its steps are scaled to AdamW's size (Liu et al., 2025), so that one learning rate
and one weight decay serve both.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from unet.train.settings import FitSettings


class Optimizer:
    """Updates the weights of `network`, which must already be on its device and in channels-last memory."""

    def __init__(self, network: nn.Module, settings: FitSettings) -> None:
        kernels = [weight for weight in network.parameters() if weight.ndim > 1]
        others = [weight for weight in network.parameters() if weight.ndim <= 1]  # biases, and scales of norms
        # The first and the last layer stay with AdamW, as Muon's authors advise for embeddings and heads.
        self._kernels = kernels[1:-1] if settings.optimizer == "muon" else []
        kept = [kernels[0], kernels[-1]] if self._kernels else kernels
        self._matrices = [nn.Parameter(_as_matrix(kernel.data)) for kernel in self._kernels]
        groups = [
            {"params": kept, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=settings.lr, fused=True)]
        if self._kernels:
            self._parts.append(
                torch.optim.Muon(
                    self._matrices,
                    lr=settings.lr,
                    weight_decay=settings.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    def step(self, rate: float) -> None:
        """Update every weight by its gradient at this learning rate, and clear the gradients."""
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            assert kernel.data_ptr() == matrix.data_ptr(), "a kernel moved in memory; its matrix must be a view of it"
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad()
        for kernel in self._kernels:
            kernel.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        """Return everything that a later step depends on."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


def learning_rate(step: int, settings: FitSettings, total_steps: int) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then poly (Liu et al., 2015: (1 - t) ** 0.9), cosine
    or constant."""
    warmup = min(settings.warmup_steps, total_steps // 2)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    t = (step - warmup) / (total_steps - warmup)
    if settings.lr_schedule == "poly":
        return float(settings.lr * (1 - t) ** 0.9)
    return settings.lr * (0.5 * (1 + math.cos(math.pi * t)) if settings.lr_schedule == "cosine" else 1.0)


def _as_matrix(kernel: Tensor) -> Tensor:
    """[A, B, h, w] as [A, h * w * B]: a view where the kernel lies in channels-last memory."""
    return kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1)
