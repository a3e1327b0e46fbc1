"""The export job without --int8: a model as one ONNX file, for programs without this library and PyTorch.

image: N x channels x H x W float32, 0..255, RGB as displayed, or bands scaled by their windows; logits: N x C x H x W
float32. Any N, H and W: normalisation, padding to the network's multiple and cropping back are in the graph. What else
a caller must know is JSON in the file's metadata. No file is written whose logits differ from the model's own by more
than `TOLERANCE`.
"""

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from unet.model.artifact import Model
from unet.model.calibration import prepare_int8
from unet.model.network import PREPROCESSING_VERSION, UNet, normalise
from unet.model.settings import ExportSettings
from unet.settings import RequestError
from unet.storage import store

TOLERANCE = 1e-4
"""Largest difference of a logit from the model's own in float32."""

IR_VERSION = 9
"""Version of the file's format: the lowest that its operations need, so that older programs read it."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(settings: ExportSettings) -> int:
    """Write the file, or with --int8 what that needs; return the exit code, 0.

    Raises:
        RequestError: no such model, an output that cannot be written, or packages that are missing.
        RuntimeError: the exported graph does not compute what the model does.
    """
    if settings.int8:
        return prepare_int8(settings)
    assert settings.output is not None
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise RequestError(f"to write ONNX, {', '.join(missing)} must be installed: pip install 'unet-ray[export]'")
    model = Model.load(settings.model)
    folder, slash, _ = settings.output.rpartition("/")
    store.check_writable(folder or slash or ".", "--output")
    data = to_onnx(model)
    difference = max_difference(data, model.network, _probe_images(model.network))
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the exported graph's logits differ from the model's by {difference:.2g}: nothing written")
    store.write(settings.output, data)
    print(f"{settings.output}: {len(data) / 1e6:,.1f} MB; its logits are the model's within {difference:.1g}")
    return 0


def to_onnx(model: Model) -> bytes:
    """Return `model` as an ONNX file with the input `image` and the output `logits`."""
    example = torch.zeros(2, model.network.config["channels"], *(2 * [5 * model.network.size_divisor // 2]))
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    with _exporter_silenced():
        program: Any = torch.onnx.export(
            _ExportedUNet(model.network).eval(),
            (example,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: batch, 2: height, 3: width},),
            dynamo=True,
            verbose=False,
        )
    file = program.model_proto
    for dimension, name in zip(file.graph.output[0].type.tensor_type.shape.dim[2:], ("height", "width"), strict=True):
        dimension.dim_param = name  # in place of the formula that padding and cropping come to
    file.ir_version = IR_VERSION
    for node in file.graph.node:
        node.ClearField("metadata_props")  # of version 10: where in this library it comes from
    for key, value in onnx_metadata(model).items():
        file.metadata_props.add(key=key, value=json.dumps(value))
    data: bytes = file.SerializeToString()
    return data


def onnx_metadata(model: Model) -> dict[str, Any]:
    """Return what a caller of the file must know besides the graph; each value becomes JSON."""
    height, width = model.geometry.size
    sizes = "any height and width, at the scale the image has"
    if model.geometry.kind == "resize":
        sizes = (
            f"resize the image to {height} x {width} (height x width; bilinear, antialiased, as Pillow does) and the "
            "logits back to the image's size (bilinear)"
        )
    channels = model.channels
    what = "RGB as displayed (EXIF orientation applied)" if channels.bands is None else f"bands {list(channels.bands)}"
    return {
        "preprocessing": {
            "version": PREPROCESSING_VERSION,
            "image": f"N x {channels.count} x H x W float32, {what}, 0..255; not normalised",
            "size": sizes,
            "window": channels.window if channels.bands is None else None,
            "sixteen_bits": "grayscale of 16 bits: window's two samples become 0 and 255, without one the high byte",
            "windows": "of each band the two samples that become 0 and 255; a pixel without data is 127",
            "channels": channels.to_json(),
        },
        "geometry": asdict(model.geometry),
        "labels": model.labels.to_json(),
        "classes": list(model.labels.names),
        "digest": model.digest,
    }


def max_difference(data: bytes, network: UNet, images: Tensor) -> float:
    """Return the largest difference between the logits of the ONNX file and the network for `images` (NCHW, 0..255)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images.numpy()})
    with torch.inference_mode():
        expected = network(normalise(images.permute(0, 2, 3, 1)))
    if logits.shape != expected.shape:
        return math.inf
    return float((torch.from_numpy(logits) - expected).abs().max())


class _ExportedUNet(nn.Module):
    """`UNet.forward` on images of 0..255, padded by indexing: the exporter cannot trace the condition in `forward`."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = image / 127.5 - 1
        x = x.index_select(2, self._padded_indices(height)).index_select(3, self._padded_indices(width))
        return self.network.forward_unpadded(x)[..., :height, :width]

    def _padded_indices(self, length: int) -> Tensor:
        """Return the indices 0..length - 1, the last one repeated up to a multiple of the network's `size_divisor`."""
        multiple = self.network.size_divisor
        blocks = (length + multiple - 1) // multiple  # of numbers above zero: ONNX rounds quotients towards zero
        return torch.arange(blocks * multiple).clamp(max=length - 1)


def _probe_images(network: UNet) -> Tensor:
    """Return two random images of a size that the network was not exported at and has to pad."""
    size = 3 * network.size_divisor + 1, 2 * network.size_divisor + 3
    noise = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, network.config["channels"], *size), generator=noise).float()


@contextmanager
def _exporter_silenced() -> Iterator[None]:
    """Suppress PyTorch's warnings about its own deprecations and about packages that a U-Net does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
