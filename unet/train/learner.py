"""A network being fitted: weights, optimizer and averaged weights, one optimizer step at a time.

images: NHWC uint8; masks: NHW uint8 class indices. Knows nothing of where batches come from or where results go. The
averaged weights (an exponential moving average over steps) are what is validated and saved. Where several workers train
together each has a part of the batch; the loss, and with it the step, is that of the whole batch.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from unet.model.network import UNet, normalise, to_channels_last
from unet.model.precision import DTYPES, bf16_speedup, fast_precision, forbid_tf32
from unet.model.transfer import Upload
from unet.train.loss import LossSums, cross_entropy, dice, loss_sums, weight_of
from unet.train.optimizer import Optimizer, ema_decay, learning_rate
from unet.train.ranks import all_reduce_mean_, all_reduce_sum, broadcast_object, rank, world_size
from unet.train.settings import FitSettings

SMALL_BATCH = 16
"""Images of a forward pass below which batch norm takes its statistics from all workers. Only GPUs can."""


class Learner:
    """`network` moves to `device`. `class_weights`: [C] or None for all 1. `total_steps`: what the schedule spans.

    `precision`: bf16, fp16 or fp32, the same on all ranks.
    """

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
        self._upload = Upload(self.device)
        self.settings = settings
        self.total_steps = total_steps
        self._decay = ema_decay(settings, total_steps)
        self.step = 0
        shared = self.device.type == "cuda" and world_size() > 1
        if shared and settings.images_per_pass < SMALL_BATCH * world_size():
            network = SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = to_channels_last(network.to(self.device)).train()
        self.average = copy.deepcopy(network).requires_grad_(False) if self._decay else network
        self._dtype = next(network.parameters()).dtype
        self.class_weights = class_weights if class_weights is None else class_weights.to(self.device)
        fast, speedup = broadcast_object((fast_precision(self.device.type), bf16_speedup(self.device.type)))
        self.precision = fast if settings.precision == "auto" else settings.precision
        forbid_tf32(self.precision, self.device)
        self.optimizer = Optimizer(self.network, settings, speedup)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._replica = DistributedDataParallel(network, forward_sync_buffers=False) if world_size() > 1 else None
        self._forward: Any = self._replica or network
        if settings.compile:
            self._forward = torch.compile(self._forward)  # around DDP, whose buckets the compiler then cuts at

    def train_step(self, images: Tensor, masks: Tensor) -> Tensor:
        """Take one optimizer step on this rank's part of a batch; return the whole's loss, a scalar on the device.

        A GPU is not waited for, but where fp16 asks whether a gradient overflowed (the weights then stay as they are),
        and where batch norm takes its statistics from all workers.
        """
        self.network.train()
        # Dropout depends on the step and the rank alone.
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step + (rank() << 40))
        parts = self.settings.accumulate
        images, masks = self._upload(images), self._upload(masks)
        weight = all_reduce_sum([weight_of(masks, self.class_weights)])[0]
        losses = []
        for place, part in enumerate(zip(images.tensor_split(parts), masks.tensor_split(parts), strict=True), 1):
            alone = self._replica is not None and place < parts
            with self._replica.no_sync() if self._replica is not None and alone else nullcontext():
                losses.append(self._backward(*part, weight))
        self._scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        rate = learning_rate(self.step, self.settings, self.total_steps)
        self._scaler.step(self.optimizer, rate)  # type: ignore[arg-type]
        self._scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        if self._decay:
            self._update_average()
        return torch.stack(losses).sum()

    def sums_of(self, logits: Tensor, masks: Tensor) -> LossSums:
        """Return what `loss_of` needs of logits, NCHW, and masks."""
        return loss_sums(logits.to(self._dtype), masks, self.class_weights, with_dice=self.settings.loss == "ce+dice")

    def loss_of(self, sums: LossSums, parts: int = 1) -> Tensor:
        """Return the configured loss, scalar; of one of the `parts` of a batch its share."""
        return cross_entropy(sums) + dice(sums) / parts if self.settings.loss == "ce+dice" else cross_entropy(sums)

    def is_finite(self) -> bool:
        """Return whether every weight is finite."""
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.network.parameters()]).all())

    def average_buffers(self) -> None:
        """Set the running statistics of batch norm to their mean over all ranks; weights are the same already."""
        for network in (self.network, self.average):
            all_reduce_mean_([buffer for buffer in network.buffers() if buffer.is_floating_point()])

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a later step depends on."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if scaler := state.get("scaler"):  # empty but in fp16, and unknown to older versions
            self._scaler.load_state_dict(scaler)

    def _backward(self, images: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
        """Add the gradients of a part of the batch, whose pixels all together weigh `weight`; return its loss.

        The loss is a function of sums over all ranks. Its derivatives by these sums are what each rank's own sums are
        differentiated with. The Dice loss of a batch in parts is the mean of the parts' losses.
        """
        with self._autocast():
            logits = self._forward(normalise(images).to(self._dtype))
        own = self.sums_of(logits, masks)
        totals = [total.requires_grad_() for total in all_reduce_sum(own)]
        sums = LossSums(*totals)._replace(weight=weight.to(own.weight))
        loss = self.loss_of(sums, self.settings.accumulate)
        derivatives = torch.autograd.grad(loss, totals, materialize_grads=True)
        # Ranks' gradients are averaged; they should be added.
        pairs = [
            (mine, self._scaler.scale(derivative * world_size()))
            for mine, derivative in zip(own, derivatives, strict=True)
            if mine.requires_grad
        ]
        torch.autograd.backward([mine for mine, _ in pairs], [derivative for _, derivative in pairs])
        return loss.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self._decay, (1 + self.step) / (10 + self.step))  # short memory while weights move fast
        means, values = (list(part.state_dict().values()) for part in (self.average, self.network))
        floats = [place for place, mean in enumerate(means) if mean.is_floating_point()]  # not batch counters
        torch._foreach_lerp_([means[place] for place in floats], [values[place] for place in floats], 1 - decay)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")
