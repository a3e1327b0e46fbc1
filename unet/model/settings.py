"""The network's architecture, how a model is applied, and the export job."""

from dataclasses import dataclass, field
from typing import Any, Literal

from unet.data.settings import SetSettings
from unet.settings import PredictPrecision, RequestError, at_least, worker_range

Preset = Literal["default", "classic"]
Norm = Literal["none", "batch", "group"]
Upsample = Literal["transpose", "bilinear"]
Block = Literal["plain", "residual"]
Encoder = Literal["resnet18", "resnet34", "resnet50"]

PRESETS: dict[Preset, dict[str, Any]] = {
    "default": {"width": 32, "depth": 4, "norm": "batch", "dropout": 0.0, "upsample": "transpose", "block": "residual"},
    "classic": {"width": 64, "depth": 4, "norm": "none", "dropout": 0.3, "upsample": "transpose", "block": "plain"},
}
"""Architectures by name; classic has 34,514,060 parameters for 3 channels and 12 classes."""

ENCODER_DEPTH = 5
"""How often an encoder halves height and width."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network. Flags left out take the value of --model."""

    model: Preset = "default"
    """Preset: default, or classic (34.5 million parameters: width 64, depth 4, no norm, dropout 0.3)."""
    width: int | None = None
    """Channels at full resolution; doubled by each pooling."""
    depth: int | None = None
    """Number of poolings."""
    norm: Norm | None = None
    """Normalisation after each convolution."""
    dropout: float | None = None
    """Share of activations dropped after each pooling and each concatenation."""
    upsample: Upsample | None = None
    """transpose: 3x3 stride-2 transposed convolution. bilinear: 1x1 convolution, then interpolation."""
    block: Block | None = None
    """plain: two convolutions. residual: what they make is added to what they were given."""
    encoder: Encoder | None = None
    """The way down is this ResNet, with batch norm and five halvings; the other flags are those of the way up."""

    def __post_init__(self) -> None:
        if self.width is not None:
            at_least("--width", self.width, 1)
            if self.norm == "group" and self.width % 8:
                raise RequestError(f"--width {self.width} must be a multiple of 8 with --norm group")
        if self.depth is not None and not 1 <= self.depth <= 7:
            raise RequestError(f"--depth {self.depth} must lie in 1..7")
        if self.encoder is not None and self.depth is not None:
            raise RequestError(f"--depth {self.depth}: --encoder {self.encoder} has its own; leave --depth out")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise RequestError(f"--dropout {self.dropout} must lie in 0..1")


def architecture(settings: ModelSettings) -> dict[str, Any]:
    """Return the arguments of `UNet` but for `classes`: those of the preset, overridden by `settings`."""
    preset = PRESETS[settings.model]
    if settings.encoder is not None:
        preset = preset | {"width": preset["width"] // 2, "depth": ENCODER_DEPTH, "encoder": settings.encoder}
    return {key: value if getattr(settings, key) is None else getattr(settings, key) for key, value in preset.items()}


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """How a model is applied, by how many workers; the jobs that apply one have these flags in common."""

    workers: str = ""
    """Number of workers: N, or MIN:MAX to grow and shrink with the work. Default: one for each CPU, or with --gpu for
    each GPU."""
    gpu: bool = False
    """Predict on GPUs, one for each worker."""
    tile: int = 1024
    """Images with more than TILE x TILE pixels are predicted in overlapping tiles of that size (geometry native)."""
    tta: bool = False
    """Average the prediction with that of the mirrored image: a little better, half as fast."""
    precision: PredictPrecision = "auto"
    """auto: what the device does fast: bf16, fp16 on GPUs without it, or fp32 on CPUs without it. bf16, fp16: half the
    memory of fp32, full precision. int8: about twice as fast as bf16 on CPUs with VNNI, for models that unet export
    --int8 has prepared."""
    batch_size: int | None = None
    """Images per forward pass on a GPU, where they are of one shape (8). CPUs take one at a time."""

    def __post_init__(self) -> None:
        at_least("--tile", self.tile, 64)
        if self.batch_size is not None:
            at_least("--batch-size", self.batch_size, 1)
        if self.gpu and self.precision == "int8":
            raise RequestError("--precision int8 is for CPUs: leave it out, or --gpu")
        self.worker_range  # noqa: B018

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Least and most workers, if --workers says."""
        return worker_range(self.workers) if self.workers else None


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write a trained model as one ONNX file, checked against the model itself; or with --int8 prepare it for the other
    jobs' --precision int8, checked on its labelled set."""

    model: str
    """Model folder, local or on S3: model/ of a training run."""
    output: str | None = None
    """The file to write, local or on S3; its name ends in .onnx. Needed without --int8."""
    int8: bool = False
    """Add to the model folder what --precision int8 needs, from the set that it was trained on (--data, or --images and
    --masks): ranges of values in its training part. What int8 costs is measured on its validation part; where that is
    more than 0.5 points of mean IoU, nothing is added."""
    data: SetSettings = field(default_factory=SetSettings)

    def __post_init__(self) -> None:
        if not self.model:
            raise RequestError("--model: name a folder or s3://bucket/prefix")
        if self.int8:
            if self.output is not None:
                raise RequestError(f"--output {self.output}: --int8 writes into the folder of --model; leave it out")
            if not self.data.folder:
                raise RequestError("--int8: name the model's labelled set with --data, or --images and --masks")
        elif self.data.folder:
            raise RequestError("--data goes with --int8; an ONNX file needs no set")
        elif not (self.output or "").endswith(".onnx"):
            given = "" if self.output is None else f" {self.output}"
            raise RequestError(f"--output{given}: name a file that ends in .onnx; or give --int8 and --data")
