"""A network being fitted: weights, optimizer and averaged weights, one optimizer step at a time.

images: NHWC uint8; masks: NHW uint8 class indices. Knows nothing of where batches come from or where results go. The
averaged weights (an exponential moving average over steps) are what is validated and saved.
"""

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from unet.labels import IGNORE
from unet.loss import LossSums, cross_entropy, dice, loss_sums
from unet.model import UNet, channels_last, normalise
from unet.optimizer import Optimizer, learning_rate
from unet.settings import FitSettings


class Learner:
    """`network` moves to `device`. `class_weights`: [C] or None for all 1. `total_steps`: what the schedule spans."""

    def __init__(
        self,
        network: UNet,
        settings: FitSettings,
        *,
        total_steps: int,
        class_weights: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.settings = settings
        self.total_steps = total_steps
        self.step = 0
        self.network = channels_last(network.to(self.device)).train()
        self.average = copy.deepcopy(network).requires_grad_(False) if settings.ema else network
        self.class_weights = class_weights if class_weights is None else class_weights.to(self.device)
        self.optimizer = Optimizer(self.network, settings)
        self._forward = torch.compile(network) if settings.compile else network

    def train_step(self, images: Tensor, masks: Tensor) -> Tensor:
        """One optimizer step on a batch. Returns its loss, a scalar that is not waited for."""
        self.network.train()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)  # dropout depends on the step alone
        parts = self.settings.accumulate
        images, masks = images.to(self.device, non_blocking=True), masks.to(self.device, non_blocking=True)
        sums = [self._backward(x, y, masks) for x, y in zip(images.chunk(parts), masks.chunk(parts), strict=True)]
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.optimizer.step(learning_rate(self.step, self.settings, self.total_steps))
        self.step += 1
        if self.settings.ema:
            self._update_average()
        return torch.stack(sums).sum()

    @torch.inference_mode()
    def evaluate(self, images: Tensor, masks: Tensor) -> tuple[LossSums, Tensor]:
        """Loss sums and predictions (NHW uint8 class indices) of the averaged weights."""
        self.average.eval()
        with self._autocast():
            logits = self.average(normalise(images.to(self.device)))
        sums = self._sums(logits, masks.to(self.device))
        return sums, logits.argmax(1).to(torch.uint8).cpu()

    def loss_of(self, sums: LossSums) -> Tensor:
        """The configured loss, scalar."""
        return cross_entropy(sums) + dice(sums) if self.settings.loss == "ce+dice" else cross_entropy(sums)

    def state_dict(self) -> dict[str, Any]:
        """Everything a later step depends on."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _sums(self, logits: Tensor, masks: Tensor) -> LossSums:
        return loss_sums(logits, masks, self.class_weights, with_dice=self.settings.loss == "ce+dice")

    def _backward(self, images: Tensor, masks: Tensor, batch: Tensor) -> Tensor:
        with self._autocast():
            logits = self._forward(normalise(images))
        sums = self._sums(logits, masks)
        if self.settings.accumulate > 1:  # cross-entropy over the whole batch's weight, Dice averaged over the parts
            valid = batch[batch != IGNORE].long()
            weight = valid.numel() if self.class_weights is None else self.class_weights[valid].sum()
            loss = sums.cross_entropy / max(weight, 1e-12)
            if self.settings.loss == "ce+dice":
                loss = loss + dice(sums) / self.settings.accumulate
        else:
            loss = self.loss_of(sums)
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))  # short memory while weights move fast
        means, values = (list(part.state_dict().values()) for part in (self.average, self.network))
        floats = [place for place, mean in enumerate(means) if mean.is_floating_point()]  # not batch counters
        torch._foreach_lerp_([means[place] for place in floats], [values[place] for place in floats], 1 - decay)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")
