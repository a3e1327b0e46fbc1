"""How weights are updated: Muon for convolution kernels, AdamW for the rest, and the learning rate of each step.

Muon (Jordan et al., 2024) orthogonalises the momentum of a matrix before it is applied; a kernel is the matrix of
its first dimension by all others. Its steps are scaled to AdamW's size (Liu et al., 2025), so that one learning rate
and one weight decay serve both. A pretrained encoder is left to AdamW, at PRETRAINED_RATE of the learning rate.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from unet.model.network import UNet
from unet.train.settings import FitSettings

MOMENTUM = 0.95
"""Of Muon, with Nesterov's look ahead."""

QUINTIC = 3.4445, -4.7750, 2.0315
"""Of each of the `ITERATIONS`, which map a singular value s to a s + b s^3 + c s^5, and five times to about 1."""

ITERATIONS = 5

PRETRAINED_RATE = 0.1
"""Learning rate of a pretrained encoder, over that of all else."""

WORTH_BF16 = 3.0
"""Speedup of bfloat16 over float32 from which on Muon multiplies in it: in float32 there is 0.4 of the work to do."""


class Optimizer:
    """Updates the weights of `network`, which must already be on its device, which is `bf16_speedup` times as fast in
    bfloat16 as in float32: Muon multiplies in what is faster, whatever the precision of the network."""

    def __init__(self, network: UNet, settings: FitSettings, bf16_speedup: float) -> None:
        pretrained = [*network.encoder.parameters()] if network.encoder and settings.encoder_weights else []
        known = {*pretrained}
        kernels, others = _by_kind([weight for weight in network.parameters() if weight not in known])
        # The first and the last layer stay with AdamW, as Muon's authors advise for embeddings and heads.
        hidden = kernels[1:-1] if settings.optimizer == "muon" else []
        kept = [kernels[0], kernels[-1]] if hidden else kernels
        groups = [
            {"params": kept, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        for weights, decay in zip(_by_kind(pretrained), (settings.weight_decay, 0.0), strict=True):
            if weights:
                groups.append({"params": weights, "weight_decay": decay, "scale": PRETRAINED_RATE})
        self._parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=settings.lr, fused=True)]
        if hidden:
            dtype = torch.bfloat16 if bf16_speedup > WORTH_BF16 else torch.float32
            self._parts.append(Muon(hidden, settings.lr, settings.weight_decay, dtype))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All weights: what a GradScaler looks through."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self, rate: float) -> None:
        """Update every weight by its gradient at this learning rate."""
        for group in self.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for part in self._parts:
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return everything that a later step depends on."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


def _by_kind(weights: list[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return kernels, and what is not decayed: biases, and scales of norms."""
    return [weight for weight in weights if weight.ndim > 1], [weight for weight in weights if weight.ndim <= 1]


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with `match_rms_adamw`, for kernels of any memory layout, all of one shape at once.

    `dtype`: of the matrix products. The names of its state are those of torch's, whose checkpoints it goes on from.
    """

    def __init__(self, kernels: list[nn.Parameter], rate: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(kernels, {"lr": rate, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every kernel that has a gradient."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for kernel in group["params"]:
                if kernel.grad is not None:
                    shapes[kernel.shape].append(kernel)
            for kernels in shapes.values():
                self._update(kernels, group["lr"], group["weight_decay"])

    def _update(self, kernels: list[Tensor], rate: float, weight_decay: float) -> None:
        """Update kernels of one shape."""
        gradients = [_as_matrix(kernel.grad) for kernel in kernels if kernel.grad is not None]
        for kernel, gradient in zip(kernels, gradients, strict=True):
            if not self.state[kernel]:
                self.state[kernel]["momentum_buffer"] = torch.zeros_like(gradient)
        momenta = [self.state[kernel]["momentum_buffer"] for kernel in kernels]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        updates = [_as_kernel(matrix, kernels[0]) for matrix in orthogonalise(torch.stack(ahead).to(self._dtype))]
        torch._foreach_mul_(kernels, 1 - rate * weight_decay)
        torch._foreach_add_(kernels, updates, alpha=-rate * 0.2 * math.sqrt(max(gradients[0].shape)))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return about U V^T of each matrix U S V^T: [N, A, B] in the dtype given, singular values about 0.7 to 1.2.

    Newton-Schulz iterations X <- (a + b X X^T + c (X X^T)^2) X, of the wide form of each matrix.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    return _iterate(x) if x.dtype == torch.bfloat16 else _iterate_gram(x)


def _iterate(x: Tensor) -> Tensor:
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterate_gram(x: Tensor) -> Tensor:
    """Iterate on X X^T alone, [A, A], and apply the product of all factors at the end: less than half the work.

    The factors are polynomials of X X^T, so they commute. It needs the digits of float32.
    """
    gram = x @ x.mT
    factor = product = _quintic_factor(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _quintic_factor(gram)
        product = factor @ product
    return product @ x


def _quintic_factor(gram: Tensor) -> Tensor:
    a, b, c = QUINTIC
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


def learning_rate(step: int, settings: FitSettings, total_steps: int) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then poly (Liu et al., 2015: (1 - t) ** 0.9), cosine
    or constant."""
    warmup = min(total_steps // 20, 200) if settings.warmup_steps is None else settings.warmup_steps
    warmup = min(warmup, total_steps // 2)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    t = (step - warmup) / (total_steps - warmup)
    if settings.lr_schedule == "poly":
        return float(settings.lr * (1 - t) ** 0.9)
    return settings.lr * (0.5 * (1 + math.cos(math.pi * t)) if settings.lr_schedule == "cosine" else 1.0)


def ema_decay(settings: FitSettings, total_steps: int) -> float:
    """Return the decay per step of the averaged weights: by default they remember a tenth of all steps."""
    return min(max(1 - 10 / total_steps, 0.9), 0.999) if settings.ema is None else settings.ema


def _as_matrix(kernel: Tensor) -> Tensor:
    """[A, B, h, w] as [A, h * w * B]: a view where the kernel lies in channels-last memory."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def _as_kernel(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_as_matrix`: a kernel of the shape and dtype of `like`."""
    _, inputs, height, width = like.shape
    return matrix.view(-1, height, width, inputs).permute(0, 3, 1, 2).to(like.dtype)
