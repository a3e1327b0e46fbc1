"""A ResNet (He et al., 2015) as the way down of a U-Net, and weights for it that were trained elsewhere.

Its tensors have the names, and its features the values, that torchvision and timm give them; a bottleneck's stride is
in its 3x3 convolution, as in their version 1.5. images: NCHW float in [-1, 1] -> features: NCHW float at strides 2, 4,
8, 16 and 32. All norms are batch norms, as the weights need.
"""

import io
from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from unet.model.settings import Encoder
from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import StorageError, Unreachable

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in 0..1, RGB: what the images were normalised by that public weights were trained on."""


class ResNet(nn.Module):
    """The convolutional part of a ResNet, for images of any number of channels."""

    def __init__(self, name: Encoder, channels: int) -> None:
        super().__init__()
        block, counts = LAYERS[name]
        self.normalise = ImageNetNormalise(channels)
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.channels = (64, *(64 * block.expansion << level for level in range(4)))
        """Of the features at each stride."""
        for level, count in enumerate(counts):
            first = block(self.channels[level], 64 << level, 1 if level == 0 else 2)
            others = (block(self.channels[level + 1], 64 << level, 1) for _ in range(count - 1))
            self.add_module(f"layer{level + 1}", nn.Sequential(first, *others))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(self.normalise(images))), inplace=True)
        features = [x]
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for level in range(4):
            x = self.get_submodule(f"layer{level + 1}")(x)
            features.append(x)
        return features


class ImageNetNormalise(nn.Module):
    """Pixels of -1..1 as ImageNet's are normalised; MEAN and STD repeat beyond three channels, and one has their mean.

    It stands before the first convolution, whose padding is then zeros of normalised pixels, as in training there.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (MEAN, STD))
        if channels == 1:
            mean, std = mean.mean()[None], std.mean()[None]
        places = torch.arange(channels) % len(mean)
        for name, values in (("scale", 0.5 / std), ("shift", (0.5 - mean) / std)):
            self.register_buffer(name, values[places, None, None].float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the identity: [in_channels] -> [width], height and width over `stride`."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """A 3x3 convolution between 1x1 ones beside the identity: [in_channels] -> [4 width], size over `stride`."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _downsample(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.downsample(x), inplace=True)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity, or what gives it other channels and another size."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


LAYERS: dict[Encoder, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
"""The block of each encoder, and how many there are in each layer."""


@dataclass(frozen=True)
class EncoderWeights:
    """What a file holds for an encoder."""

    tensors: dict[str, Tensor]
    """A state dict of `ResNet`, float32."""
    left_out: tuple[str, ...]
    """Names of all else in the file, such as the classifier's."""


def read_encoder_weights(uri: str, encoder: Encoder, channels: int) -> EncoderWeights:
    """Return the weights in a safetensors file or a PyTorch state dict, for images of so many channels.

    The names of the ResNet's tensors may have any prefix, as `backbone.`.

    Raises:
        RequestError: names --encoder-weights, the file, what is wrong with it and the remedy.
        Unreachable: the storage server does not answer.
    """
    given = _read_tensors(uri)
    prefixes = [name.removesuffix(_LANDMARK) for name in given if name.endswith(_LANDMARK)]
    if len(prefixes) != 1:
        raise _refusal(uri, f"holds {len(prefixes)} ResNets (tensors named {_LANDMARK}); give a state dict of one")
    own = {name.removeprefix(prefixes[0]): tensor for name, tensor in given.items() if name.startswith(prefixes[0])}
    own = {name: tensor.float() for name, tensor in own.items() if name.startswith(_PARTS) and not _is_counter(name)}
    first = own.get("conv1.weight")
    if first is not None and first.shape[1:2] == (3,):
        own["conv1.weight"] = adapt_to_channels(first, channels)
    _check_shapes(uri, own, encoder, channels)
    if not all(tensor.isfinite().all() for tensor in own.values()):
        raise _refusal(uri, "holds numbers that are not finite; give another file")
    taken = {prefixes[0] + name for name in own}
    return EncoderWeights(own, tuple(name for name in given if name not in taken and not _is_counter(name)))


def adapt_to_channels(kernel: Tensor, channels: int) -> Tensor:
    """Return a kernel of RGB, [A, 3, h, w], for so many channels: summed for one, else repeated and scaled to the same
    sum, as timm does."""
    if channels == 3:
        return kernel
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    return kernel[:, torch.arange(channels) % 3] * (3 / channels)


_LANDMARK = "layer1.0.conv1.weight"
_PARTS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")


def _is_counter(name: str) -> bool:
    """Return whether a tensor counts the batches of a norm, which nothing here reads and older files lack."""
    return name.endswith("num_batches_tracked")


def _shapes(encoder: Encoder, channels: int) -> dict[str, list[int]]:
    with torch.device("meta"):
        tensors = ResNet(encoder, channels).state_dict()
    return {name: list(tensor.shape) for name, tensor in tensors.items() if not _is_counter(name)}


def _check_shapes(uri: str, tensors: dict[str, Tensor], encoder: Encoder, channels: int) -> None:
    """Raise RequestError unless these are all tensors of the encoder, of its shapes."""
    wanted, found = _shapes(encoder, channels), {name: list(tensor.shape) for name, tensor in tensors.items()}
    for other in LAYERS:
        if other != encoder and found == _shapes(other, channels):
            raise _refusal(uri, f"is of a {other}; give --encoder {other}")
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise _refusal(uri, f"lacks {name} of a {encoder}; give a whole state dict of one")
        if name not in wanted:
            raise _refusal(uri, f"holds {name}, which no {encoder} has; give a state dict of one")
        if wanted[name] != found[name]:
            shapes = " where ".join(" x ".join(map(str, shape)) for shape in (found[name], wanted[name]))
            raise _refusal(
                uri, f"{name} is {shapes} is needed; give weights of a {encoder} for {channels} or 3 channels"
            )


def _read_tensors(uri: str) -> dict[str, Tensor]:
    """Return the tensors of a file by name. Nothing in it is executed."""
    try:
        data = store.read(uri)
    except Unreachable as error:
        raise store.check_error(uri, "--encoder-weights", "read", error) from None
    except StorageError as error:
        raise _refusal(uri, f"cannot be read ({error.strerror}); name a file of weights") from None
    try:
        given = load_tensors(data) if data[8:9] == b"{" else torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file leads to
        given = error
    tensors = given if isinstance(given, dict) else {"": given}
    if others := {type(value).__name__ for value in tensors.values() if not isinstance(value, Tensor)}:
        remedy = "write one by torch.save(network.state_dict(), FILE), or safetensors"
        raise _refusal(uri, f"is no state dict ({', '.join(sorted(others))}); {remedy}")
    return tensors


def _refusal(uri: str, reason: str) -> RequestError:
    return RequestError(f"--encoder-weights {uri}: {reason}")
