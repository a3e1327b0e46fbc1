"""The network as it is applied: the same function of an image as the trained one, prepared for speed.

On a CPU it also sums in the same order on any number of threads, which PyTorch's own operations do not all do. On a GPU
cuDNN adds biases and applies ReLUs within its convolutions, where it can.
"""

import copy
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unet.model.network import DoubleConv, UNet, UpBlock, to_channels_last

FUSING_CAPABILITY = 8
"""Compute capability from which on cuDNN fuses in all precisions."""

INT32_RANGE = 1 << 31
"""Numbers of a tensor that cuDNN's fused convolutions can count."""


def prepare_for_inference(network: UNet, device: torch.device, dtype: torch.dtype) -> UNet:
    """Return a copy of `network` for inference alone, on `device`."""
    network = _fold_batch_norms(copy.deepcopy(network).eval().requires_grad_(False))
    if device.type == "cpu":
        network = _make_deterministic(network)
    elif torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= FUSING_CAPABILITY:
        network = _fuse_relus(network)
    return to_channels_last(network.to(device, dtype))


def _fold_batch_norms(network: UNet) -> UNet:
    """Fold each batch norm of `network` into the convolution before it; return `network`."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Sequential) and isinstance(child[-1], nn.BatchNorm2d | nn.SyncBatchNorm):
                convolution, norm = child
                assert isinstance(convolution, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
            elif name.startswith("bn") and isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):  # of a ResNet
                before = name.replace("bn", "conv")
                setattr(parent, before, fuse_conv_bn_eval(getattr(parent, before), child))
                setattr(parent, name, nn.Identity())
    return network


def _make_deterministic(network: UNet) -> UNet:
    """Replace the operations that sum in another order on another number of CPU threads; return `network`.

    All others were measured to sum in the same order.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, UpBlock) and isinstance(child.upsample, nn.ConvTranspose2d):
                setattr(parent, name, UpsampleAsConvs(child))
            elif isinstance(child, nn.GroupNorm):
                setattr(parent, name, DeterministicGroupNorm(child))
            elif isinstance(child, nn.Conv2d):
                _force_onednn(child)
    return network


def _force_onednn(convolution: nn.Conv2d) -> nn.Conv2d:
    """Keep PyTorch from computing a 1x1 convolution without oneDNN, as it does on a single thread; return it."""
    if convolution.kernel_size == (1, 1):
        convolution.dilation = (2, 2)  # which changes nothing
    return convolution


def split_transposed(transposed: nn.ConvTranspose2d) -> list[nn.Conv2d]:
    """Return a 3x3 transposed convolution of stride 2 as four plain ones, of an input padded by one at the bottom and
    right: of even and odd rows, each of even and odd columns.

    An even row or column is the kernel's middle times the pixel; an odd one is the kernel's end times the pixel plus
    its beginning times the next pixel.
    """
    assert transposed.bias is not None
    kernel, parts = transposed.weight.transpose(0, 1), list[nn.Conv2d]()
    for rows, columns in itertools.product(([1], [2, 0]), repeat=2):
        size = len(rows), len(columns)
        part = nn.Conv2d(transposed.in_channels, transposed.out_channels, size).requires_grad_(False)
        part.weight.copy_(kernel[:, :, rows][..., columns])
        assert part.bias is not None
        part.bias.copy_(transposed.bias)
        parts.append(part)
    return parts


def convolve_and_concatenate(parts: Iterable[nn.Module], x: Tensor, skip: Tensor, channels: int) -> Tensor:
    """Return what a transposed convolution, split into `parts`, makes of the padded `x`, with the channels of `skip`
    behind its own `channels`. Each part's pixels are written to their places, so that nothing is concatenated."""
    count, _, height, width = skip.shape
    both = skip.new_empty(count, height // 2, 2, width // 2, 2, channels + skip.shape[1])
    for part, (row, column) in zip(parts, itertools.product((0, 1), repeat=2), strict=True):
        pixels = part(x)[:, :, : height // 2, : width // 2]
        both[:, :, row, :, column, :channels] = pixels.permute(0, 2, 3, 1)
    both = both.view(count, height, width, -1)
    both[..., channels:] = skip.permute(0, 2, 3, 1)
    return both.permute(0, 3, 1, 2)


class UpsampleAsConvs(nn.Module):
    """An `UpBlock` whose transposed convolution is four plain ones."""

    def __init__(self, up: UpBlock) -> None:
        super().__init__()
        transposed = up.upsample
        assert isinstance(transposed, nn.ConvTranspose2d)
        self.block = up.block
        self.channels = transposed.out_channels
        self.parts = nn.ModuleList(map(_force_onednn, split_transposed(transposed)))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))  # not in the convolutions: with padding, these kernels depend on the threads
        y: Tensor = self.block(convolve_and_concatenate(self.parts, x, skip, self.channels))
        return y


class DeterministicGroupNorm(nn.Module):
    """Group norm in contiguous memory, not channels-last, so that one thread sums all of a group."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.contiguous())
        return normed.contiguous(memory_format=torch.channels_last)


def _fuse_relus(network: UNet) -> UNet:
    """Fuse the operations of each `DoubleConv` without norms; return `network`."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DoubleConv) and isinstance(child.first, nn.Conv2d):
                setattr(parent, name, FusedDoubleConv(child))
    return network


class FusedDoubleConv(nn.Module):
    """A `DoubleConv` without norms, whose biases, ReLUs and sum are parts of its convolutions on a GPU.

    PyTorch's own addition of a bias to channels-last bf16 takes a quarter of a U-Net's time on an H200.
    """

    def __init__(self, block: DoubleConv) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = block.first, block.second, block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = _convolve_relu(x, self.first)
        return _convolve_relu(y, self.second, None if self.shortcut is None else self.shortcut(x))


def _convolve_relu(x: Tensor, convolution: nn.Module, added: Tensor | None = None) -> Tensor:
    """Return the ReLU of a 3x3 convolution of `x`, plus `added`."""
    assert isinstance(convolution, nn.Conv2d)
    if x.shape[0] * x.shape[2] * x.shape[3] * max(convolution.in_channels, convolution.out_channels) >= INT32_RANGE:
        y = convolution(x)
        return F.relu(y if added is None else y.add_(added), inplace=True)
    one = (1, 1)
    weight, bias = convolution.weight, convolution.bias
    if added is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride=one, padding=one, dilation=one, groups=1)
    return torch.cudnn_convolution_add_relu(
        x, weight, added, alpha=1, bias=bias, stride=one, padding=one, dilation=one, groups=1
    )
