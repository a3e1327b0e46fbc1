"""Every knob of every job: typed, documented, checked.

Each class is frozen and keyword-only; the docstring under a field is its help on the command line. What cannot be right
by itself is refused here, with the flag and the remedy; what depends on files or on the cluster is refused where they
are first seen. Either way it is a `RequestError`.
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal


class RequestError(ValueError):
    """The request cannot be right: one line that names the flag or file and the remedy. Ends a job with exit 2."""


@dataclass(frozen=True)
class Geometry:
    """How a model sees an image; a property of the model, stored with it."""

    kind: Literal["resize", "native"]
    """resize: the whole image is resized to `size`. native: trained on crops of `size` at native scale."""
    size: tuple[int, int]
    """Height and width [pixels]."""


Window = tuple[int, int]
"""Samples of 16-bit grayscale images that become black and white, 0 and 255; between them the scale is linear."""

Preset = Literal["default", "classic"]
Norm = Literal["none", "batch", "group"]
Upsample = Literal["transpose", "bilinear"]
Loss = Literal["ce", "ce+dice"]
OptimizerName = Literal["muon", "adamw"]
LearningRateSchedule = Literal["poly", "cosine", "constant"]
Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The labelled set."""

    data: str | None = None
    """Folder of the labelled set, laid out as images/ + masks/ (with train/ and val/ inside or around them), as CamVid
    (train/ trainannot/ val/ valannot/, or as published), Cityscapes or Pascal VOC, or as image-segmentation-keras does.
    Without any: a generated sample set."""
    images: str | None = None
    """Folder of images, in place of --data; needs --masks."""
    masks: str | None = None
    """Folder of masks, in place of --data; needs --images."""
    val_data: str | None = None
    """Labelled set to validate on, laid out as images/ + masks/. Default: the val part of --data, else a split."""
    val_fraction: float = 0.2
    """Share of images to validate on where the set has no val part; chosen by a hash of the key, so that an image
    stays on its side as the set grows."""
    classes: str | None = None
    """Label set: camvid, camvid32 (as published, in 32 colours), cityscapes, voc, or a CSV with the columns
    index,name,red,green,blue[,ignore], where rows of one name are one class. Needed for your own data."""
    binary: bool = False
    """In place of --classes: masks hold 0 and 255, or 0 and 1: background and foreground."""
    score_ignore: bool = False
    """Train and score the ignored labels as classes of their own."""
    window: Window | None = None
    """Samples LOW HIGH of 16-bit grayscale images that become black and white; part of the model. Default: percentiles
    0.5 and 99.5 of those that the check reads."""
    check_limit: int = 5000
    """How many pairs are read in full before anything starts; of a larger set, a random sample of that many."""

    def __post_init__(self) -> None:
        if (self.images is None) != (self.masks is None):
            raise RequestError("--images and --masks go together: give both, or --data")
        if self.data is not None and self.images is not None:
            raise RequestError("--data and --images/--masks are two ways to name the same set: give one")
        given = self.data is not None or self.images is not None
        if self.binary and self.classes is not None:
            raise RequestError("--binary and --classes both say what the values of the masks mean: give one")
        if self.binary and not given:
            raise RequestError("--binary: the generated sample set has 11 classes; give --data, or leave the flag out")
        if given and not self.binary and self.classes is None:
            raise RequestError(
                "--classes: say what the values of the masks mean: camvid, cityscapes, voc or a label file; or give "
                "--binary for masks of 0 and 255"
            )
        if not 0 < self.val_fraction < 1:
            raise RequestError(f"--val-fraction {self.val_fraction} must lie between 0 and 1")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise RequestError(f"--window {self.window[0]} {self.window[1]}: LOW must be below HIGH")
        _at_least("--check-limit", self.check_limit, 1)

    @property
    def labels(self) -> str:
        """The name of the label set, as `labels.read_labels` takes it; the sample set's is camvid."""
        return "binary" if self.binary else self.classes or "camvid"


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
    """Share of activations dropped after each pooling and each concatenation (on CPUs in steps of 1/256)."""
    upsample: Upsample | None = None
    """transpose: 3x3 stride-2 transposed convolution. bilinear: 1x1 convolution, then interpolation."""

    def __post_init__(self) -> None:
        if self.width is not None:
            _at_least("--width", self.width, 1)
            if self.norm == "group" and self.width % 8:
                raise RequestError(f"--width {self.width} must be a multiple of 8 with --norm group")
        if self.depth is not None and not 1 <= self.depth <= 7:
            raise RequestError(f"--depth {self.depth} must lie in 1..7")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise RequestError(f"--dropout {self.dropout} must lie in 0..1")


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Random changes to every training image; image and mask move together."""

    scale: tuple[float, float] = (0.75, 1.5)
    """Zoom, drawn log-uniformly between LOW and HIGH."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    vertical_flip: float = 0.0
    """Probability of mirroring top and bottom."""
    warp: float = 0.3
    """Probability of a rotation and elastic deformation."""
    rotate: float = 5.0
    """Largest rotation [degrees], either way."""
    elastic: float = 0.01
    """Elastic deformation: standard deviation of the displacements, as a share of the view's shorter side."""
    brightness: float = 0.2
    """Brightness is multiplied by 1 +- this."""
    contrast: float = 0.2
    """Contrast is multiplied by 1 +- this."""
    saturation: float = 0.2
    """Saturation is multiplied by 1 +- this."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise RequestError(f"--scale {low} {high}: LOW must be above 0 and at most HIGH")
        for name in ("flip", "vertical_flip", "warp", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise RequestError(f"--{name.replace('_', '-')} {getattr(self, name)} must lie in 0..1")
        if not 0 <= self.elastic <= 0.1 or not 0 <= self.rotate <= 180:
            raise RequestError("--elastic must lie in 0..0.1 and --rotate in 0..180")


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How the weights are fitted."""

    epochs: int = 20
    """Number of epochs; each ends with a validation."""
    steps_per_epoch: int | None = None
    """Optimizer steps per epoch. Default: as many as show each image once, rounded up."""
    max_steps: int | None = None
    """Stop after this many steps, whatever --epochs says; the learning rate is scheduled for these."""
    batch_size: int = 16
    """Images per optimizer step, over all workers."""
    accumulate: int = 1
    """Split each batch into this many forward and backward passes, to save memory."""
    optimizer: OptimizerName = "muon"
    """muon: Muon for convolution kernels, AdamW for the rest. adamw: AdamW for all."""
    lr: float = 4e-3
    """Peak learning rate."""
    lr_schedule: LearningRateSchedule = "poly"
    """Decay after the warm-up: poly ((1 - t) ** 0.9), cosine, or constant."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, on convolution kernels alone."""
    clip: float = 5.0
    """Largest norm of the gradient; 0: not clipped."""
    loss: Loss = "ce+dice"
    """Cross-entropy, or cross-entropy plus soft Dice."""
    class_weights: str = "median"
    """Weights of the cross-entropy: none, median (median frequency over frequency, to the power of
    --class-weight-power), or a CSV with the columns name,weight."""
    class_weight_power: float = 0.3
    """Exponent of the median-frequency weights: 1 balances the classes fully, 0 not at all."""
    ema: float = 0.98
    """Decay per step of the averaged weights, which are what is validated and saved; 0: no averaging."""
    patience: int = 0
    """Stop when this many epochs have brought no better validation mIoU; 0: never."""
    seed: int = 0
    """Seed of initial weights, order, augmentation and dropout."""
    init_from: str | None = None
    """Model folder to start from; what fits is taken (a head for other classes is not)."""
    precision: Precision = "bf16"
    """bf16: autocast (float32 weights). fp32: no autocast."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, faster after."""

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "max_steps", "batch_size", "accumulate"):
            if getattr(self, name) is not None:
                _at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        for name in ("warmup_steps", "weight_decay", "clip", "patience", "class_weight_power", "seed"):
            _at_least(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        if not 0 < self.lr < math.inf:
            raise RequestError(f"--lr {self.lr} must be above 0, and finite")
        if self.seed >= 1 << 32:
            raise RequestError(f"--seed {self.seed} must be below 2 ** 32")
        if not 0 <= self.ema < 1:
            raise RequestError(f"--ema {self.ema} must lie in 0..1, 1 excluded")
        if self.batch_size % self.accumulate:
            raise RequestError(
                f"--accumulate {self.accumulate} must divide --batch-size {self.batch_size}; try a power of two"
            )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Train a U-Net on a labelled image set."""

    output: str = "runs"
    """Folder under which the run's own folder, --name, is made."""
    name: str = "unet"
    """Name of the run. A finished run is not repeated; an unfinished one goes on where it stopped."""
    size: tuple[int, int] | None = None
    """Geometry resize: the whole image is resized to H W [pixels]. Default, without --crop: 128 128."""
    crop: tuple[int, int] | None = None
    """Geometry native: trained on crops of H W [pixels] at native scale, applied to whole images."""
    workers: str = "1"
    """Number of training workers: N, or MIN:MAX to go on with fewer while machines are missing."""
    gpu: bool = False
    """Give each worker a GPU."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which an interrupted run goes on; 0: one after each epoch alone."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        if self.size is not None and self.crop is not None:
            raise RequestError("--size and --crop are two geometries: give one")
        for flag, size in (("--size", self.size), ("--crop", self.crop)):
            if size is not None:
                _at_least(flag, min(size), 8)
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise RequestError(f"--name {self.name!r} must be a folder name, without a slash or a leading dot")
        _at_least("--checkpoint-every", self.checkpoint_every, 0)
        smallest = self.fit.batch_size // self.fit.accumulate
        if self.worker_range[1] > smallest:
            raise RequestError(
                f"--workers {self.workers}: {smallest} images of a forward pass (--batch-size over --accumulate) leave "
                f"some workers none; give at most {smallest} workers"
            )

    @property
    def worker_range(self) -> tuple[int, int]:
        """Least and most workers."""
        return _range_of(self.workers)

    @property
    def geometry(self) -> Geometry:
        """What --size or --crop ask for."""
        if self.crop is not None:
            return Geometry("native", self.crop)
        return Geometry("resize", self.size or (128, 128))


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """Segment every image of a folder or bucket that is new or changed."""

    input: str
    """Folder or s3://bucket/prefix of the images."""
    output: str
    """Folder or s3://bucket/prefix of the masks: the image KEY becomes OUTPUT/KEY.png. Reports, overlays and the
    ledger lie under OUTPUT/_segment/."""
    model: str
    """Model folder, local or on S3: model/ of a training run."""
    workers: str = ""
    """Number of workers: N, or MIN:MAX to grow and shrink with the work. Default: one for each CPU, or with --gpu for
    each GPU."""
    gpu: bool = False
    """Predict on GPUs, one for each worker; reading and writing are left to CPUs."""
    include: tuple[str, ...] = ()
    """Patterns of the keys to segment, as in *.jpg or 2026/*. Default: names that end like an image."""
    exclude: tuple[str, ...] = ()
    """Patterns of the keys to leave out."""
    manifest: str | None = None
    """CSV or Parquet file with a column key, which is segmented in place of a listing."""
    limit: int | None = None
    """Segment at most this many images in this run."""
    write: str = "mask"
    """What to write, with commas: mask, overlay (mask over image), confidence (255: certain)."""
    tile: int = 1024
    """Images with more than TILE x TILE pixels are predicted in overlapping tiles of that size (geometry native)."""
    tta: bool = False
    """Average the prediction with that of the mirrored image: a little better, half as fast."""
    precision: Precision = "bf16"
    """bf16: half the memory, several times as fast where the processor has it. fp32: full precision."""
    batch_size: int | None = None
    """Images per forward pass on a GPU, where they are of one shape (8). CPUs take one at a time."""
    max_pixels: int = 1 << 28
    """Images of more pixels fail unread."""
    max_bytes: int = 1 << 28
    """Objects of more bytes are skipped."""
    retry_for: float = 120.0
    """Seconds for which a request to S3 is repeated that fails for a passing reason, before the object fails."""
    time_limit: float | None = None
    """Seconds after which the run ends itself as SIGTERM would, with exit code 143; the same command goes on."""
    lease: float = 60.0
    """Seconds for which nothing is seen of a run on S3 before another may take its output over. At least 2."""
    max_failed: str = "0"
    """Exit with 3 if more objects fail than this number, or share as in 5%."""
    retry_failed: bool = False
    """Try objects again that failed before and have not changed since."""
    force: bool = False
    """Segment everything anew."""
    verify: bool = False
    """List the masks too, and make missing and altered ones again."""
    prune: bool = False
    """Delete the masks of images that are gone. Without it they are counted."""
    dry_run: bool = False
    """Say what would be done and why; change nothing."""

    def __post_init__(self) -> None:
        for name in ("input", "output", "model"):
            if not getattr(self, name):
                raise RequestError(f"--{name}: name a folder or s3://bucket/prefix")
        unknown = set(self.outputs) - {"mask", "overlay", "confidence"}
        if unknown or "mask" not in self.outputs:
            raise RequestError(f"--write {self.write}: give mask, and with commas overlay and confidence")
        for name in ("limit", "batch_size", "max_pixels", "max_bytes"):
            if getattr(self, name) is not None:
                _at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        _at_least("--tile", self.tile, 64)
        _at_least("--retry-for", self.retry_for, 0)
        _at_least("--lease", self.lease, 2)
        if self.time_limit is not None:
            _at_least("--time-limit", self.time_limit, 0)
        partial = [flag for flag in ("include", "exclude", "manifest", "limit") if getattr(self, flag)]
        if self.prune and partial:
            raise RequestError(f"--prune needs a whole listing; leave --{' and --'.join(partial)} out")
        self.worker_range  # noqa: B018
        self.failures_allowed(0)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What --write names."""
        return tuple(sorted(name.strip() for name in self.write.split(",")))

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Least and most workers, if --workers says."""
        return _range_of(self.workers) if self.workers else None

    def failures_allowed(self, attempted: int) -> float:
        """How many of `attempted` objects may fail."""
        text = self.max_failed.strip()
        try:
            value = float(text.rstrip("%"))
        except ValueError:
            value = -1.0
        if not 0 <= value < math.inf or (text.endswith("%") and value > 100):
            raise RequestError(f"--max-failed {self.max_failed}: give a number as in 10, or a share as in 5%")
        return value / 100 * attempted if text.endswith("%") else value


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Score a model, or masks already written, on a labelled set, at the size of its masks."""

    data: str
    """Folder or s3://bucket/prefix of the labelled set, in one of the layouts that training takes."""
    output: str
    """Folder or s3://bucket/prefix of scores.json, images.parquet and the page, index.html."""
    model: str | None = None
    """Model folder, local or on S3: model/ of a training run."""
    masks: str | None = None
    """Folder of masks that jobs/segment.py has written for the set's images, to be scored in place of a model's."""
    classes: str | None = None
    """Label set of the truth: camvid, camvid32, cityscapes, voc, binary, or a CSV. Default: the model's own."""
    score_ignore: bool = False
    """Score the ignored labels of --classes as classes of their own."""
    part: Literal["val", "train", "all"] = "val"
    """Which part of the set to score. val: its validation part or, where it has none, what training chose to validate
    on (--val-fraction)."""
    val_fraction: float = 0.2
    """Share of images that is the validation part where the set has none; as in training."""
    check_limit: int = 5000
    """How many pairs are read in full before anything starts; of a larger set, a random sample of that many."""
    workers: str = ""
    """Number of workers: N, or MIN:MAX to grow and shrink with the work. Default: one for each CPU, or with --gpu for
    each GPU."""
    gpu: bool = False
    """Predict on GPUs, one for each worker."""
    tile: int = 1024
    """Images with more than TILE x TILE pixels are predicted in overlapping tiles of that size (geometry native)."""
    tta: bool = False
    """Average the prediction with that of the mirrored image."""
    precision: Precision = "bf16"
    """bf16: half the memory, several times as fast where the processor has it. fp32: full precision."""
    batch_size: int | None = None
    """Images per forward pass on a GPU, where they are of one shape (8). CPUs take one at a time."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.masks is None):
            raise RequestError("--model, or --masks to score masks already written: give one of them")
        if self.masks is not None and self.classes is None:
            raise RequestError("--classes: say what the values of the masks mean: camvid, or a label file")
        if self.score_ignore and self.classes is None:
            raise RequestError("--score-ignore goes with --classes; a model's own labels say what it scores")
        for flag, folder in (("--data", self.data), ("--output", self.output)):
            if not folder:
                raise RequestError(f"{flag}: name a folder or s3://bucket/prefix")
        if self.batch_size is not None:
            _at_least("--batch-size", self.batch_size, 1)
        _at_least("--tile", self.tile, 64)
        self.worker_range  # noqa: B018

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Least and most workers, if --workers says."""
        return _range_of(self.workers) if self.workers else None

    def set_of(self, classes: str) -> DataSettings:
        """The labelled set as training names it."""
        return DataSettings(
            data=self.data, classes=classes, val_fraction=self.val_fraction, check_limit=self.check_limit
        )


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write a trained model as one ONNX file, checked against the model itself."""

    model: str
    """Model folder, local or on S3: model/ of a training run."""
    output: str
    """The file to write, local or on S3; its name ends in .onnx."""

    def __post_init__(self) -> None:
        if not self.model:
            raise RequestError("--model: name a folder or s3://bucket/prefix")
        if not self.output.endswith(".onnx"):
            raise RequestError(f"--output {self.output}: name a file that ends in .onnx")


def to_mapping(settings: Any) -> dict[str, Any]:
    """Every field by its name, groups flattened: what `--config` reads back."""
    flat: dict[str, Any] = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            flat |= to_mapping(value)
        else:
            flat[item.name] = list(value) if isinstance(value, tuple) else value
    return flat


def _range_of(workers: str) -> tuple[int, int]:
    """Least and most of N or MIN:MAX."""
    try:
        least, most = (int(part) for part in (workers.split(":") * 2)[:2])
    except ValueError:
        least = most = 0
    if not 1 <= least <= most or workers.count(":") > 1:
        raise RequestError(f"--workers {workers}: give a number, or MIN:MAX as in 1:4")
    return least, most


def _at_least(flag: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise RequestError(f"{flag} {value} must be at least {least}, and finite")
