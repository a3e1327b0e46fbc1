"""The network as it is applied: the same function of an image as the trained one, prepared for speed.

On a CPU it also sums in the same order on any number of threads, which PyTorch's own operations do not all do.
"""

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unet.model.network import Block, UNet, Up, channels_last


def prepared(network: UNet, device: torch.device, dtype: torch.dtype) -> UNet:
    """A copy of `network` for inference alone, on `device`."""
    network = _folded(copy.deepcopy(network).eval().requires_grad_(False))
    if device.type == "cpu":
        network = _deterministic(network)
    network = channels_last(network.to(device, dtype))
    return _fused_relu(network) if device.type == "cpu" and rectifies(dtype) else network


def rectifies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a convolution with its ReLU here: in bf16 not on every processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _folded(network: UNet) -> UNet:
    """`network` with each batch norm folded into the convolution before it."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Sequential) and isinstance(child[-1], nn.BatchNorm2d):
                convolution, norm = child
                assert isinstance(convolution, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
    return network


def _deterministic(network: UNet) -> UNet:
    """`network` of operations that sum in the same order on any number of CPU threads; all others measured do."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Up) and isinstance(child.upsample, nn.ConvTranspose2d):
                setattr(parent, name, UpsampleAsConvs(child))
            elif isinstance(child, nn.GroupNorm):
                setattr(parent, name, DeterministicGroupNorm(child))
            elif isinstance(child, nn.Conv2d):
                _through_onednn(child)
    return network


def _fused_relu(network: UNet) -> UNet:
    """`network` with each convolution and the ReLU behind it as one operation."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Block) and isinstance(child.first, nn.Conv2d):
                setattr(parent, name, nn.Sequential(ConvReLU(child.first), ConvReLU(child.second)))
    return network


def _through_onednn(convolution: nn.Conv2d) -> nn.Conv2d:
    """`convolution`, of which PyTorch would take one of single pixels past oneDNN where it has a single thread."""
    if convolution.kernel_size == (1, 1):
        convolution.dilation = (2, 2)  # which changes nothing
    return convolution


class UpsampleAsConvs(nn.Module):
    """An `Up` whose 3x3 transposed convolution of stride 2 is four plain ones, for even and odd rows of even and odd
    columns, and makes its pixels where the convolutions after it read them, beside the skip's.

    An even row or column is the kernel's middle times the pixel; an odd one is the kernel's end times the pixel plus
    its beginning times the next pixel.
    """

    def __init__(self, up: Up) -> None:
        super().__init__()
        transposed = up.upsample
        assert isinstance(transposed, nn.ConvTranspose2d)
        assert transposed.bias is not None
        kernel = transposed.weight.transpose(0, 1)
        self.block = up.block
        self.channels = transposed.out_channels
        self.parts = nn.ModuleList()
        for rows, columns in itertools.product(([1], [2, 0]), repeat=2):
            size = len(rows), len(columns)
            part = nn.Conv2d(transposed.in_channels, self.channels, size).requires_grad_(False)
            part.weight.copy_(kernel[:, :, rows][..., columns])
            assert part.bias is not None
            part.bias.copy_(transposed.bias)
            self.parts.append(_through_onednn(part))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        count, _, height, width = x.shape
        x = F.pad(x, (0, 1, 0, 1))  # not in the convolutions: with padding, these kernels depend on the threads
        joined = x.new_empty(count, height, 2, width, 2, self.channels + skip.shape[1])
        for part, (row, column) in zip(self.parts, itertools.product((0, 1), repeat=2), strict=True):
            made = part(x)[:, :, :height, :width]
            joined[:, :, row, :, column, : self.channels] = made.permute(0, 2, 3, 1)
        joined = joined.view(count, 2 * height, 2 * width, -1)
        joined[..., self.channels :] = skip.permute(0, 2, 3, 1)
        y: Tensor = self.block(joined.permute(0, 3, 1, 2))
        return y


class ConvReLU(nn.Module):
    """A convolution and the ReLU behind it as the one operation that oneDNN has for both, with a kernel in the order
    that it reads: what PyTorch's compiler makes of them, without a compiler."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        assert isinstance(convolution, nn.Conv2d)
        self.how = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
        self.kernel = torch.ops.mkldnn._reorder_convolution_weight(convolution.weight, *self.how, [])
        self.bias = convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.kernel, self.bias, *self.how, "relu", [], "")
        return y


class DeterministicGroupNorm(nn.Module):
    """Group norm over planes, not channels-last memory, where a group's sum is one thread's."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.contiguous())
        return normed.contiguous(memory_format=torch.channels_last)
