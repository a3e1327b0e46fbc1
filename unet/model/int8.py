"""The network in 8-bit integers: what `--precision int8` computes with, by oneDNN's convolutions, which PyTorch brings.

A tensor between convolutions is uint8 with one step and zero for all of it, from the range of values that calibration
saw; weights are int8 with one step an output channel (Jacob et al., 2018). Sums of integers do not depend on their
order, nor masks on threads. What has no form in integers is computed in float32 between them.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unet.model.inference import DeterministicGroupNorm, convolve_and_concatenate, split_transposed
from unet.model.network import UNet
from unet.settings import RequestError

FORMAT = 1
"""Version of what model.json holds of it, and of what is computed: another one makes other masks."""

IMAGES = (-1.0, 1.0)
"""Range of normalised images, whatever those were like that calibration saw."""

Ranges = dict[str, tuple[float, float]]
"""Least and greatest value of the input of each convolution, by the name of its module."""


VNNI = ("avx512_vnni", "avx_vnni")
"""Instructions of processors, one of which is needed: without them, oneDNN's sums of 8-bit products overflow."""


def check_processor() -> None:
    """Raise RequestError if this processor has no instructions for int8."""
    if not any(torch.cpu.get_capabilities().get(name) for name in VNNI):
        raise RequestError("int8 needs a processor with VNNI, which this one has not: give --precision auto")


def check_int8(prepared: dict[str, Any], device: torch.device | None = None, flag: str = "--model") -> None:
    """Raise RequestError if a model cannot be applied in int8 by `device`; `prepared`: its `Model.int8`."""
    if not prepared:
        raise RequestError(
            f"{flag}: is not prepared for --precision int8; run: unet export --int8 --model ... --data ..."
        )
    if prepared["format"] > FORMAT:
        raise RequestError(f"{flag}: was prepared for int8 by a newer version; update this one")
    if device is not None and device.type != "cpu":
        raise RequestError(f"int8 is for CPUs, not {device.type}: give another precision")
    check_processor()


def calibrate(network: UNet, images: Iterable[Tensor]) -> Ranges:
    """Return the ranges of the convolutions' inputs for `images`, normalised and NCHW, of any sizes."""
    ranges: Ranges = {}

    def note(name: str, value: Tensor) -> None:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = min(low, value.min().item()), max(high, value.max().item())

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name, module in network.named_modules()
        if _is_convolution(module)
    ]
    with torch.inference_mode():
        for image in images:
            network(image)
    for hook in hooks:
        hook.remove()
    return ranges


def to_int8(network: UNet, ranges: Ranges) -> nn.Module:
    """Return `UNet.forward_unpadded` of a copy of `network` in integers: normalised images to logits, NCHW float32."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, DeterministicGroupNorm(child))
    return _Conversion(network, ranges).result()


@dataclass(frozen=True)
class Scale:
    """What the integers of a tensor stand for: (integer - zero) * step."""

    step: float
    zero: int

    @classmethod
    def of(cls, ranges: Iterable[tuple[float, float]]) -> "Scale":
        """Return the scale that holds all of `ranges`. Zero, which borders are padded with, is an integer exactly; one
        integer of the 256 is left for that."""
        lows, highs = zip(*ranges, strict=True)
        low, high = min(*lows, 0.0), max(*highs, 0.0)
        step = (high - low) / 254 or 1.0
        return cls(step, round(-low / step))


def quantise(x: Tensor, step: float, zero: int) -> Tensor:
    """Return floats as uint8, rounded to the nearest, in channels-last memory."""
    integers = (x / step).add_(zero).round_().clamp_(0, 255).to(torch.uint8)
    return integers.contiguous(memory_format=torch.channels_last)


def dequantise(x: Tensor, step: float, zero: int) -> Tensor:
    """Return integers as the floats that they stand for."""
    return x.float().sub_(zero).mul_(step)


class Int8Conv(nn.Module):
    """A convolution of uint8 to uint8, or to float32 where `made` is None, with the ReLU behind it.

    `conv`: its weights, also those of a part of a transposed one; `taken`, `made`: what input and output stand for."""

    def __init__(self, conv: nn.Conv2d, taken: Scale, made: Scale | None, *, relu: bool) -> None:
        super().__init__()
        self.geometry = [list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups]
        self.taken, self.made, self.relu = taken, made, relu
        self.steps = conv.weight.abs().amax((1, 2, 3)).clamp_min_(torch.finfo(torch.float32).tiny).div_(127)
        integers = (conv.weight / self.steps[:, None, None, None]).round_().to(torch.int8)
        self.zeros = torch.zeros(len(integers), dtype=torch.int64)
        self.bias = conv.bias
        shape = [1, conv.in_channels, 64, 64]  # any: without one, some weights would be laid out anew for each image
        self.weight = torch.ops.onednn.qconv_prepack(
            integers, self.steps, taken.step, taken.zero, *self.geometry, shape
        )

    def forward(self, x: Tensor) -> Tensor:
        made = (1.0, 0, torch.float32) if self.made is None else (self.made.step, self.made.zero, torch.uint8)
        scaled = self.taken.step, self.taken.zero, self.weight, self.steps, self.zeros
        activation = "relu" if self.relu else "none"
        y: Tensor = torch.ops.onednn.qconv2d_pointwise(x, *scaled, self.bias, *self.geometry, *made, activation, [], "")
        return y


class Int8Upsample(nn.Module):
    """`UpsampleAsConvs` in uint8, without the block behind it."""

    def __init__(self, transposed: nn.ConvTranspose2d, taken: Scale, made: Scale) -> None:
        super().__init__()
        self.channels, self.zero = transposed.out_channels, taken.zero
        self.parts = nn.ModuleList(Int8Conv(part, taken, made, relu=False) for part in split_transposed(transposed))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1), value=self.zero)
        return convolve_and_concatenate(self.parts, x, skip, self.channels)


class Int8MaxPool(nn.Module):
    """Max pooling of uint8."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        sizes = pool.kernel_size, pool.stride, pool.padding, pool.dilation
        self.geometry = [[size] * 2 if isinstance(size, int) else list(size) for size in sizes]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.max_pool2d(x, *self.geometry, ceil_mode=False)
        return y


class _Tracer(fx.Tracer):
    traced_func_name = "forward_unpadded"


class _Conversion:
    """Of a network, its operations one by one (`torch.fx`): convolutions, max pooling and concatenation take integers
    and leave integers where a convolution needs them; all other operations take and leave floats."""

    def __init__(self, network: UNet, ranges: Ranges) -> None:
        self.network = network
        self.graph = _Tracer().trace(network)
        self._simplify()
        self.scales = {node: self._scale(node, ranges) for node in self.graph.nodes}
        """Of the nodes whose values convolutions take, also by way of pooling and concatenation; None of others."""
        self.in_integers = set[fx.Node]()
        self.quantised: dict[fx.Node, fx.Node] = {}
        """Of nodes that leave floats, those that make integers of them."""

    def result(self) -> nn.Module:
        """Return the converted network."""
        for node in list(self.graph.nodes):
            module = self._module(node)
            if isinstance(module, nn.Conv2d):
                self._convert_conv(node, module)
            elif isinstance(module, nn.ConvTranspose2d):
                self._convert_upsample(node, module)
            elif self._keeps_scale(node) and self.scales[node]:
                if isinstance(module, nn.MaxPool2d):
                    self.network.set_submodule(node.target, Int8MaxPool(module))
                self._take_integers(node, self.scales[node])
                self.in_integers.add(node)
            else:
                for taken in self.in_integers.intersection(node.all_input_nodes):
                    node.replace_input_with(taken, self._insert(dequantise, taken, self.scales[taken], node))
        return fx.GraphModule(self.network, self.graph)

    def _simplify(self) -> None:
        """Leave out dropout, and fold each batch norm into the convolution before it."""
        for node in list(self.graph.nodes):
            module = self._module(node)
            before: Any = node.args[0] if module is not None else None
            if isinstance(module, nn.BatchNorm2d) and isinstance(conv := self._module(before), nn.Conv2d):
                if len(before.users) > 1:
                    continue
                self.network.set_submodule(before.target, fuse_conv_bn_eval(conv, module))
            elif not isinstance(module, nn.Dropout | nn.Identity):
                continue
            node.replace_all_uses_with(before)
            self.graph.erase_node(node)

    def _module(self, node: Any) -> nn.Module | None:
        return self.network.get_submodule(node.target) if node.op == "call_module" else None

    def _keeps_scale(self, node: fx.Node) -> bool:
        return isinstance(self._module(node), nn.MaxPool2d) or node.target is torch.cat

    def _scale(self, node: fx.Node, ranges: Ranges) -> Scale | None:
        """Return the scale that a value shares with those that it is pooled or concatenated to, and with."""
        members, rest = set[fx.Node](), [node]
        while rest:
            if (member := rest.pop()) not in members:
                members.add(member)
                rest += [user for user in member.users if self._keeps_scale(user)]
                rest += member.all_input_nodes if self._keeps_scale(member) else []
        users = {user for member in members for user in member.users if _is_convolution(self._module(user))}
        images = [IMAGES] * (node.op == "placeholder")
        return Scale.of([*images, *(ranges[str(user.target)] for user in users)]) if users else None

    def _convert_conv(self, node: fx.Node, module: nn.Conv2d) -> None:
        (taken, *_), users = node.all_input_nodes, list(node.users)
        relu = len(users) == 1 and users[0].target is F.relu
        made = self.scales[users[0] if relu else node]
        scale = self.scales[taken]
        assert scale is not None
        self._take_integers(node, scale)
        self.network.set_submodule(str(node.target), Int8Conv(module, scale, made, relu=relu))
        if relu:
            self._replace(users[0], node)
        if made:
            self.in_integers.add(node)

    def _convert_upsample(self, node: fx.Node, module: nn.ConvTranspose2d) -> None:
        """Convert a transposed convolution and the concatenation of the skip's channels behind it."""
        (taken,), (concatenation,) = node.all_input_nodes, node.users
        _, skip = concatenation.all_input_nodes
        scale, made = self.scales[taken], self.scales[concatenation]
        assert scale is not None
        assert made is not None
        self._take_integers(node, scale)
        self.network.set_submodule(str(node.target), Int8Upsample(module, scale, made))
        node.args = (*node.args, skip)
        self._take_integers(node, made)
        self._replace(concatenation, node)
        self.in_integers.add(node)

    def _take_integers(self, node: fx.Node, scale: Scale | None) -> None:
        """Let `node` take its inputs as integers of `scale`."""
        for taken in node.all_input_nodes:
            if taken not in self.in_integers:
                if taken not in self.quantised:
                    self.quantised[taken] = self._insert(quantise, taken, scale, node)
                    self.in_integers.add(self.quantised[taken])
                node.replace_input_with(taken, self.quantised[taken])

    def _insert(self, function: Any, value: fx.Node, scale: Scale | None, before: fx.Node) -> fx.Node:
        assert scale is not None
        with self.graph.inserting_before(before):
            return self.graph.call_function(function, (value, scale.step, scale.zero))

    def _replace(self, node: fx.Node, other: fx.Node) -> None:
        """Let `other` stand for `node`, which it computes as well."""
        self.scales[other] = self.scales[node]
        node.replace_all_uses_with(other)
        self.graph.erase_node(node)


def _is_convolution(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
