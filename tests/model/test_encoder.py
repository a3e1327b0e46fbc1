"""ResNets as encoders: the features of a reference, weights from files and stores, and a U-Net that has one."""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from tests.model.test_int8 import needs_vnni
from unet.data.channels import Channels
from unet.data.labels import read_labels
from unet.model.artifact import Model
from unet.model.encoder import LAYERS, MEAN, STD, ResNet, read_encoder_weights
from unet.model.inference import prepare_for_inference
from unet.model.int8 import calibrate, to_int8
from unet.model.network import UNet, normalise
from unet.model.onnx import TOLERANCE, max_difference, to_onnx
from unet.model.predictor import Predictor
from unet.model.settings import Encoder, ModelSettings, architecture
from unet.settings import Geometry, Precision, RequestError
from unet.storage import store

Tensors = dict[str, Tensor]

SIZE = 75, 91
"""Of images: odd, and a multiple of nothing that an encoder halves."""


@cache
def make_resnet(encoder: Encoder) -> ResNet:
    """A ResNet with random weights, norms too, that has seen images."""
    torch.manual_seed(0)
    network = ResNet(encoder, 3)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, *((0.5, 1.5) if name.endswith("weight") else (-0.5, 0.5)))
    network(images_of())
    return network.eval()


def torchvision_weights(network: ResNet) -> Tensors:
    """What torchvision would save of it: a classifier too."""
    return {**network.state_dict(), "fc.weight": torch.zeros(10, network.channels[-1]), "fc.bias": torch.zeros(10)}


def saved(tensors: Tensors, file: Path) -> str:
    """Write tensors as the suffix of `file` says; return its name."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    file.write_bytes(save_tensors(tensors) if file.suffix == ".safetensors" else buffer.getvalue())
    return str(file)


def images_of(channels: int = 3) -> Tensor:
    return normalise(torch.randint(0, 256, (2, *SIZE, channels), dtype=torch.uint8))


def imagenet_normalised(images: Tensor) -> Tensor:
    """As torchvision's transforms give images, of -1..1, to its networks."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((images + 1) / 2 - mean) / std


def reference_features(encoder: Encoder, tensors: Tensors, images: Tensor) -> list[Tensor]:
    """The features that Hugging Face's ResNet with these weights has of ImageNet's images, from stride 2 on."""
    from transformers import ResNetConfig, ResNetModel

    bottleneck = encoder == "resnet50"
    config = ResNetConfig(
        hidden_sizes=[256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512],
        depths=[3, 4, 6, 3] if encoder != "resnet18" else [2, 2, 2, 2],
        layer_type="bottleneck" if bottleneck else "basic",
    )
    network: Any = ResNetModel(config)
    network.eval().load_state_dict(
        {_reference_name(name): tensor for name, tensor in tensors.items() if "fc." not in name}
    )
    with torch.no_grad():
        stem = network.embedder.embedder(images)
        return [stem, *network(images, output_hidden_states=True).hidden_states[1:]]


def _reference_name(name: str) -> str:
    """Hugging Face's name of a tensor for torchvision's: layer1.0.conv2.weight is
    encoder.stages.0.layers.0.layer.1.convolution.weight."""
    *place, part, kind = name.split(".")
    if not place:
        return f"embedder.embedder.{_kind(part)}.{kind}"
    stage, block = f"encoder.stages.{int(place[0][-1]) - 1}", f"layers.{place[1]}"
    if "downsample" in place:
        return f"{stage}.{block}.shortcut.{('convolution', 'normalization')[int(part)]}.{kind}"
    return f"{stage}.{block}.layer.{int(part[-1]) - 1}.{_kind(part)}.{kind}"


def _kind(part: str) -> str:
    return "convolution" if part.startswith("conv") else "normalization"


@pytest.mark.slow  # for the seconds that an import of transformers takes
@pytest.mark.parametrize("encoder", LAYERS)
def test_features_are_those_of_a_reference(encoder: Encoder, tmp_path: Path) -> None:
    tensors, images = torchvision_weights(make_resnet(encoder)), images_of()
    network = ResNet(encoder, 3).eval()
    network.load_state_dict(read_encoder_weights(saved(tensors, tmp_path / "a.safetensors"), encoder, 3).tensors)
    expected = reference_features(encoder, tensors, imagenet_normalised(images))
    with torch.no_grad():
        found = network(images)
    assert [tuple(part.shape) for part in found] == [tuple(part.shape) for part in expected]
    assert [part.shape[1] for part in found] == list(network.channels)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0.5
        assert (ours - theirs).abs().max() < 1e-5


def test_padding_is_of_normalised_pixels() -> None:
    """A border of ImageNet's mean colour, which normalised is zero, is what the first convolution pads with."""
    network, images = make_resnet("resnet18"), images_of()
    border = (2 * torch.tensor(MEAN) - 1)[:, None, None].expand(2, 3, SIZE[0] + 8, SIZE[1] + 8).clone()
    border[..., 4:-4, 4:-4] = images
    with torch.no_grad():
        plain, framed = (network.conv1(network.normalise(part)) for part in (images, border))
    assert torch.allclose(framed[..., 2:-2, 2:-2], plain, atol=1e-5)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_weights_are_read_with_any_prefix_and_without_the_classifier(suffix: str, prefix: str, tmp_path: Path) -> None:
    expected = make_resnet("resnet18")
    tensors = {prefix + name: tensor for name, tensor in torchvision_weights(expected).items()}
    given = read_encoder_weights(saved(tensors, tmp_path / f"a.{suffix}"), "resnet18", 3)
    assert set(given.left_out) == {f"{prefix}fc.weight", f"{prefix}fc.bias"}
    network = ResNet("resnet18", 3)
    network.load_state_dict(given.tensors)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name


def test_weights_are_read_from_s3_in_halves_and_without_counters(bucket: str) -> None:
    tensors = torchvision_weights(make_resnet("resnet18"))
    halves = {name: tensor.half() for name, tensor in tensors.items() if "num_batches" not in name}
    store.write(f"{bucket}/weights/a.safetensors", save_tensors(halves))
    given = read_encoder_weights(f"{bucket}/weights/a.safetensors", "resnet18", 3).tensors
    ResNet("resnet18", 3).load_state_dict(given)
    assert torch.equal(given["bn1.weight"], halves["bn1.weight"].float())


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_the_first_kernel_is_adapted_to_other_channels(channels: int, tmp_path: Path) -> None:
    file = saved(torchvision_weights(make_resnet("resnet18")), tmp_path / "a.safetensors")
    kernels = [read_encoder_weights(file, "resnet18", count).tensors["conv1.weight"] for count in (3, channels)]
    assert kernels[1].shape == (64, channels, 7, 7)
    if channels == 1:
        assert torch.allclose(kernels[1], kernels[0].sum(1, keepdim=True))
    else:
        assert torch.allclose(kernels[1], kernels[0][:, [place % 3 for place in range(channels)]] * 3 / channels)
    assert ResNet("resnet18", channels).normalise(torch.zeros(1, channels, 4, 4)).shape == (1, channels, 4, 4)


def damaged(tensors: Tensors) -> Tensors:
    return tensors | {"layer3.1.bn2.weight": torch.full((256,), torch.nan)}


def without(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != "layer2.0.downsample.0.weight"}


def deeper(tensors: Tensors) -> Tensors:
    return tensors | {"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}


def wider(tensors: Tensors) -> Tensors:
    return tensors | {"layer4.1.conv2.weight": torch.zeros(1024, 512, 3, 3)}


def five_bands(tensors: Tensors) -> Tensors:
    return tensors | {"conv1.weight": torch.zeros(64, 5, 7, 7)}


def of_two(tensors: Tensors) -> Tensors:
    return {f"{which}.{name}": tensor for name, tensor in tensors.items() for which in ("encoder_q", "encoder_k")}


def of_a_deeper_one(tensors: Tensors) -> Tensors:
    return torchvision_weights(make_resnet("resnet34"))


def of_nothing(tensors: Tensors) -> Tensors:
    return {"head.weight": tensors["fc.weight"]}


def nested(tensors: Tensors) -> Any:
    return {"state_dict": tensors, "epoch": 3}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damaged, "not finite"),
        (without, "lacks layer2.0.downsample.0.weight of a resnet18"),
        (deeper, "holds layer1.2.conv1.weight, which no resnet18 has"),
        (wider, "layer4.1.conv2.weight is 1024 x 512 x 3 x 3 where 512 x 512 x 3 x 3 is needed"),
        (five_bands, "conv1.weight is 64 x 5 x 7 x 7 where 64 x 3 x 7 x 7 is needed"),
        (of_two, "holds 2 ResNets"),
        (of_a_deeper_one, "is of a resnet34; give --encoder resnet34"),
        (of_nothing, "holds 0 ResNets"),
        (nested, "is no state dict (dict, int); write one by torch.save("),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_weights_of_something_else_are_refused(spoil: Callable[[Tensors], Any], words: str, tmp_path: Path) -> None:
    file = saved(spoil(torchvision_weights(make_resnet("resnet18"))), tmp_path / "a.pth")
    with pytest.raises(RequestError) as refused:
        read_encoder_weights(file, "resnet18", 3)
    assert str(refused.value).startswith(f"--encoder-weights {file}: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_a_file_that_is_no_state_dict_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    file, buffer = tmp_path / "a.pth", io.BytesIO()
    torch.save({"conv1.weight": Bomb()}, buffer)
    for content in (buffer.getvalue(), buffer.getvalue()[:-40], b"", b"12345678{}", b"<html>not found</html>"):
        file.write_bytes(content)
        with pytest.raises(RequestError, match=r"^--encoder-weights .*is no state dict"):
            read_encoder_weights(str(file), "resnet18", 3)
    with pytest.raises(RequestError, match=r"^--encoder-weights .*cannot be read \(.*name a file"):
        read_encoder_weights(str(tmp_path / "b.pth"), "resnet18", 3)


def make_model(encoder: Encoder = "resnet18", channels: int = 3) -> Model:
    """A U-Net with random weights whose norms have seen images."""
    torch.manual_seed(0)
    network = UNet(classes=11, channels=channels, **architecture(ModelSettings(encoder=encoder, width=8)))
    with torch.no_grad():
        for _ in range(4):
            network(images_of(channels))
    return Model(network.eval(), read_labels("camvid"), Geometry("native", (64, 96)))


@pytest.mark.parametrize("encoder", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_the_prepared_network_is_the_network(encoder: Encoder) -> None:
    network, images = make_model(encoder).network, images_of()
    prepared = prepare_for_inference(network, torch.device("cpu"), torch.float32)
    assert not [module for module in prepared.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.inference_mode():
        expected, found = network(images), prepared(images)
    assert found.shape == (2, 11, *SIZE)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_masks_do_not_depend_on_the_batch_or_the_threads(precision: Precision) -> None:
    predictor, before = Predictor(make_model(), precision=precision), torch.get_num_threads()
    images = list(torch.randint(0, 256, (5, *SIZE, 3), dtype=torch.uint8).numpy())
    together = [prediction.mask for prediction in predictor.predict_batch(images)]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all((predictor.predict(image) == mask).all() for image, mask in zip(images, together, strict=True))
    finally:
        torch.set_num_threads(before)
    assert len(np.unique(together)) > 1


def test_the_model_folder_says_which_encoder_and_older_ones_have_none(tmp_path: Path) -> None:
    model, image = make_model(channels=4), torch.randint(0, 256, (*SIZE, 4), dtype=torch.uint8).numpy()
    model.channels = Channels(bands=(1, 2, 3, 4), windows=((0, 255),) * 4)
    model.save(str(tmp_path))
    description = json.loads((tmp_path / "model.json").read_text())
    assert (description["format"], description["architecture"]["encoder"]) == (4, "resnet18")
    loaded = Model.load(str(tmp_path))
    assert (Predictor(loaded).predict(image) == Predictor(model).predict(image)).all()
    assert "encoder" not in UNet(classes=2, width=8, depth=1).config


@needs_vnni
def test_in_integers_it_says_nearly_the_same() -> None:
    network = make_model().network
    images = images_of()[..., :64, :64]
    with torch.inference_mode():
        expected, found = network(images), to_int8(network, calibrate(network, [images]))(images)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.9


@pytest.mark.slow  # for the seconds that the exporter takes for so many layers
def test_the_onnx_file_computes_the_same() -> None:
    model = make_model()
    data = to_onnx(model)
    for size in ((1, 3, 37, 61), (2, 3, 64, 33)):
        assert max_difference(data, model.network, torch.randint(0, 256, size).float()) <= TOLERANCE


def test_flags_of_an_encoder_that_contradict_one_another_are_refused() -> None:
    assert architecture(ModelSettings(encoder="resnet34"))["width"] == 16
    with pytest.raises(RequestError, match=r"^--depth 3: --encoder resnet34 has its own"):
        ModelSettings(encoder="resnet34", depth=3)
