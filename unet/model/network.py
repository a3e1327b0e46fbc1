"""The network: a U-Net (Ronneberger et al., 2015) with its width, depth, norm, dropout and up-sampling as arguments.

images: NHWC uint8 -> `normalise` -> NCHW float in [-1, 1] -> `UNet` -> logits: NCHW float, C classes, same H and W.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet.model.settings import ModelSettings, Norm, Preset, Upsample

PRESETS: dict[Preset, dict[str, Any]] = {
    "default": {"width": 32, "depth": 4, "norm": "batch", "dropout": 0.0, "upsample": "transpose"},
    "classic": {"width": 64, "depth": 4, "norm": "none", "dropout": 0.3, "upsample": "transpose"},
}
"""Architectures by name; classic has 34,514,060 parameters for 3 channels and 12 classes."""


def architecture(settings: ModelSettings) -> dict[str, Any]:
    """Arguments of `UNet` but for `classes`: the preset, and what `settings` says otherwise."""
    preset = PRESETS[settings.model]
    return {key: value if getattr(settings, key) is None else getattr(settings, key) for key, value in preset.items()}


PREPROCESSING = 1
"""Counts changes of what the network is given for the same image."""


def normalise(images: Tensor) -> Tensor:
    """Images as the network sees them: NHWC uint8 to NCHW float32 in [-1, 1], in channels-last memory."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def channels_last(network: "UNet") -> "UNet":
    """`network` with its kernels laid out as `normalise` lays out images: much the fastest for convolutions."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class UNet(nn.Module):
    """A U-Net of `depth` poolings; level i has `width * 2**i` channels.

    Each level applies two 3x3 convolutions, each followed by norm and ReLU. Any input size: the input is padded at
    the bottom and right to a multiple of 2**depth by repeating its border, and the logits are cropped back, so an
    image's logits depend on that image alone.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        width: int = 64,
        depth: int = 4,
        norm: Norm = "none",
        dropout: float = 0.3,
        upsample: Upsample = "transpose",
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "classes": classes,
            "channels": channels,
            "width": width,
            "depth": depth,
            "norm": norm,
            "dropout": dropout,
            "upsample": upsample,
        }
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList()
        self.down.append(Block(channels, widths[0], norm))
        for before, after in pairwise(widths):
            self.down.append(nn.Sequential(nn.MaxPool2d(2), Dropout(dropout), Block(before, after, norm)))
        self.up = nn.ModuleList(Up(widths[level], norm, dropout, upsample) for level in reversed(range(depth)))
        self.head = nn.Conv2d(width, classes, 1)
        self.multiple = 1 << depth
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # he_normal
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, NCHW float, of normalised images, NCHW float."""
        height, width = images.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        x = F.pad(images, padding, mode="replicate") if any(padding) else images
        return self.unpadded(x)[..., :height, :width]

    def unpadded(self, images: Tensor) -> Tensor:
        """Logits of normalised images whose height and width are multiples of `multiple`."""
        x = images
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        skips.pop()
        for level in self.up:
            x = level(x, skips.pop())
        logits: Tensor = self.head(x)
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by norm and ReLU."""

    def __init__(self, before: int, after: int, norm: Norm) -> None:
        super().__init__()
        self.first = _conv(before, after, norm)
        self.second = _conv(after, after, norm)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x), inplace=True)
        return F.relu(self.second(x), inplace=True)


class Up(nn.Module):
    """Doubles height and width, joins the skip of that size, and applies a `Block`."""

    def __init__(self, width: int, norm: Norm, dropout: float, upsample: Upsample) -> None:
        super().__init__()
        self.upsample: nn.Module
        if upsample == "transpose":
            self.upsample = nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1)
        else:
            self.upsample = nn.Sequential(
                nn.Conv2d(2 * width, width, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            )
        self.dropout = Dropout(dropout)
        self.block = Block(2 * width, width, norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([self.upsample(x), skip], dim=1)
        y: Tensor = self.block(self.dropout(x))
        return y


class Dropout(nn.Dropout):
    """Dropout that on CPUs draws a byte of noise for each element. PyTorch draws a number for each, on one core, which
    takes a third of a step of the classic model. The share that is dropped is rounded to 1/256, and at least that."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        kept = 256 - min(max(1, round(256 * self.p)), 255)
        noise = torch.empty_like(x)  # without gaps, whatever its memory format
        drawn = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)
        torch.lt(drawn.as_strided(noise.shape, noise.stride()), kept, out=noise)
        return x * noise.mul_(256 / kept)


def _conv(before: int, after: int, norm: Norm) -> nn.Module:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=norm == "none")
    if norm == "batch":
        return nn.Sequential(convolution, nn.BatchNorm2d(after))
    if norm == "group":
        return nn.Sequential(convolution, nn.GroupNorm(8, after))
    return convolution
