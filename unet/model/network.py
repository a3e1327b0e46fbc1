"""The network: a U-Net (Ronneberger et al., 2015) with its width, depth, norm, dropout, up-sampling and
residual connections (He et al., 2016) as arguments.

images: NHWC uint8 -> `normalise` -> NCHW float in [-1, 1] -> `UNet` -> logits: NCHW float, C classes, same H and W.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet.model.encoder import ResNet
from unet.model.settings import ENCODER_DEPTH, Block, Encoder, Norm, Upsample

PREPROCESSING_VERSION = 1
"""Version of the preprocessing: another one gives the network other input for the same image."""


def normalise(images: Tensor) -> Tensor:
    """Return images as the network's input: NHWC uint8 to NCHW float32 in [-1, 1], in channels-last memory."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_channels_last(network: "UNet") -> "UNet":
    """Lay out the kernels of `network` as `normalise` does images, which is fastest for convolutions; return it."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class UNet(nn.Module):
    """A U-Net of `depth` poolings; level i has `width * 2**i` channels.

    Each level applies two 3x3 convolutions, each followed by norm and ReLU; a residual `block` adds what it was given
    before the last ReLU. Any input size: the input is padded at the bottom and right to a multiple of `size_divisor`,
    2**depth, by repeating its border, and the logits are cropped back, so an image's logits depend on that image alone.
    With an `encoder`, whose depth is 5, level 0 of the way down
    is as without one, and the others are the encoder's.
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
        block: Block = "plain",
        encoder: Encoder | None = None,
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
            **({} if block == "plain" else {"block": block}),
            **({} if encoder is None else {"encoder": encoder}),
        }
        assert encoder is None or depth == ENCODER_DEPTH
        widths = [width << level for level in range(depth + 1)]
        make_block = partial(DoubleConv, norm=norm, residual=block == "residual")
        self.down: PlainDown | ResNetDown
        if encoder is None:
            self.down = PlainDown(channels, widths, dropout, make_block)
        else:
            self.down = ResNetDown(channels, encoder, make_block(channels, width))
        skips = self.down.channels
        widths[-1] = skips[-1]
        self.up = nn.ModuleList()
        for level in reversed(range(depth)):
            convolutions = make_block(widths[level] + skips[level], widths[level])
            self.up.append(UpBlock(widths[level + 1], widths[level], upsample, dropout, convolutions))
        self.head = nn.Conv2d(width, classes, 1)
        self.size_divisor = 1 << depth
        self.apply(_initialise)

    @property
    def encoder(self) -> ResNet | None:
        """The part of it that can begin from weights trained elsewhere."""
        return self.down.encoder if isinstance(self.down, ResNetDown) else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, NCHW float, of normalised images, NCHW float."""
        height, width = images.shape[-2:]
        padding = (0, -width % self.size_divisor, 0, -height % self.size_divisor)
        x = F.pad(images, padding, mode="replicate") if any(padding) else images
        return self.forward_unpadded(x)[..., :height, :width]

    def forward_unpadded(self, images: Tensor) -> Tensor:
        """Return the logits of normalised images whose height and width are multiples of `size_divisor`."""
        skips = self.down(images)
        x = skips.pop()
        for level in self.up:
            x = level(x, skips.pop())
        logits: Tensor = self.head(x)
        return logits


class PlainDown(nn.ModuleList):
    """A `DoubleConv` at each level, each after the first behind a pooling; returns the features of every level."""

    def __init__(
        self, channels: int, widths: Sequence[int], dropout: float, make_block: Callable[[int, int], "DoubleConv"]
    ) -> None:
        super().__init__()
        self.channels = tuple(widths)
        self.append(make_block(channels, widths[0]))
        for in_channels, out_channels in pairwise(widths):
            block = make_block(in_channels, out_channels)
            self.append(nn.Sequential(nn.MaxPool2d(2), nn.Dropout(dropout), block))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for level in self:
            x = level(x)
            features.append(x)
        return features


class ResNetDown(nn.Module):
    """A `DoubleConv` at full resolution beside a ResNet, which begins at half of it; returns the features of every
    level."""

    def __init__(self, channels: int, encoder: Encoder, full: "DoubleConv") -> None:
        super().__init__()
        self.full = full
        self.encoder = ResNet(encoder, channels)
        self.channels = (full.channels, *self.encoder.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.full(images), *self.encoder(images)]


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each followed by norm and ReLU; `residual`: the input is added before the last ReLU, by a
    1x1 convolution and norm (He et al., 2016, option B: each block of a U-Net changes the number of channels)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm, residual: bool) -> None:
        super().__init__()
        self.channels = out_channels
        self.first = _conv_norm(in_channels, out_channels, norm)
        self.second = _conv_norm(out_channels, out_channels, norm)
        self.shortcut = _conv_norm(in_channels, out_channels, norm, kernel=1) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x), inplace=True))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return F.relu(y, inplace=True)


class UpBlock(nn.Module):
    """Doubles height and width, concatenates the skip connection, and applies `block`."""

    def __init__(self, in_channels: int, width: int, upsample: Upsample, dropout: float, block: "DoubleConv") -> None:
        super().__init__()
        self.upsample: nn.Module
        if upsample == "transpose":
            self.upsample = nn.ConvTranspose2d(in_channels, width, 3, stride=2, padding=1, output_padding=1)
        else:
            self.upsample = nn.Sequential(
                nn.Conv2d(in_channels, width, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            )
        self.dropout = nn.Dropout(dropout)
        self.block = block

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([self.upsample(x), skip], dim=1)
        y: Tensor = self.block(self.dropout(x))
        return y


def _conv_norm(in_channels: int, out_channels: int, norm: Norm, kernel: int = 3) -> nn.Module:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none")
    if norm == "batch":
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
    if norm == "group":
        return nn.Sequential(convolution, nn.GroupNorm(8, out_channels))
    return convolution


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # he_normal
        if module.bias is not None:
            nn.init.zeros_(module.bias)
