"""The training job."""

import math
from dataclasses import dataclass, field
from typing import Literal

from unet.data.settings import AugmentSettings, DataSettings
from unet.model.settings import ModelSettings, architecture
from unet.settings import Geometry, Precision, RequestError, at_least, worker_range

Loss = Literal["ce", "ce+dice"]
OptimizerName = Literal["muon", "adamw"]
LearningRateSchedule = Literal["poly", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How the weights are fitted."""

    minutes: float | None = None
    """Plan epochs and steps, and what else is left open, for a run of so many minutes on this machine: from the start
    to the last validation."""
    epochs: int | None = None
    """Number of epochs; each ends with a validation. More of them go on with a run, finished or not. Default:
    planned."""
    steps_per_epoch: int | None = None
    """Optimizer steps per epoch. Default: planned, or with --epochs as many as show each image once, rounded up."""
    max_steps: int | None = None
    """Stop after this many steps, whatever --epochs says; the learning rate is scheduled for these."""
    batch_size: int | None = None
    """Images per optimizer step, over all workers. Default: planned."""
    accumulate: int = 1
    """Split each batch into this many forward and backward passes, to save memory."""
    optimizer: OptimizerName = "muon"
    """muon: Muon for convolution kernels, AdamW for the rest. adamw: AdamW for all."""
    lr: float = 8e-3
    """Peak learning rate."""
    lr_schedule: LearningRateSchedule = "poly"
    """Decay after the warm-up: poly ((1 - t) ** 0.9), cosine, or constant."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly. Default: a twentieth of all, at most 200."""
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
    ema: float | None = None
    """Decay per step of the averaged weights, which are what is validated and saved; 0: no averaging. Default: 0.9 to
    0.999, so that they remember a tenth of all steps."""
    patience: int = 0
    """Stop when this many epochs have brought no better validation mIoU; 0: never."""
    seed: int = 0
    """Seed of initial weights, order, augmentation and dropout."""
    init_from: str | None = None
    """Model folder to start from; what fits is taken (a head for other classes is not)."""
    encoder_weights: str | None = None
    """Weights that --encoder starts from: a safetensors file or a PyTorch state dict of that ResNet, with the names of
    torchvision and timm, local or on S3. It then learns at a tenth of --lr."""
    precision: Precision = "auto"
    """auto: what the device does fast: bf16, fp16 on GPUs without it, or fp32 on CPUs without it. bf16: autocast
    (float32 weights). fp16: autocast with loss scaling. fp32: no autocast."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, faster after."""

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "max_steps", "batch_size", "accumulate"):
            if getattr(self, name) is not None:
                at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        for name in ("warmup_steps", "weight_decay", "clip", "patience", "class_weight_power", "seed"):
            if getattr(self, name) is not None:
                at_least(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise RequestError(f"--minutes {self.minutes} must be above 0, and finite")
        if self.minutes is not None and self.max_steps is not None:
            raise RequestError("--minutes and --max-steps both say how long the run is: give one")
        if not 0 < self.lr < math.inf:
            raise RequestError(f"--lr {self.lr} must be above 0, and finite")
        if self.seed >= 1 << 32:
            raise RequestError(f"--seed {self.seed} must be below 2 ** 32")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise RequestError(f"--ema {self.ema} must lie in 0..1, 1 excluded")
        if self.batch_size is not None and self.batch_size % self.accumulate:
            raise RequestError(
                f"--accumulate {self.accumulate} must divide --batch-size {self.batch_size}; try a power of two"
            )

    @property
    def images_per_pass(self) -> int:
        """Images of a forward pass, over all workers, of a run that is planned."""
        assert self.batch_size is not None
        return self.batch_size // self.accumulate


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Train a U-Net on a labelled image set."""

    output: str = "runs"
    """Folder under which the run's own folder, --name, is made."""
    name: str = "unet"
    """Name of the run. A finished run is not repeated; an unfinished one goes on where it stopped."""
    size: tuple[int, int] | None = None
    """Geometry resize: the whole image is resized to H W [pixels]. Default, without --crop: planned, as what suits the
    images."""
    crop: tuple[int, int] | None = None
    """Geometry native: trained on crops of H W [pixels] at native scale, applied to whole images."""
    check: bool = False
    """Check the labelled set alone, and write what was found to OUTPUT/NAME/check.html; as `unet check` does."""
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
                at_least(flag, min(size), 8)
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise RequestError(f"--name {self.name!r} must be a folder name, without a slash or a leading dot")
        at_least("--checkpoint-every", self.checkpoint_every, 0)
        if self.fit.encoder_weights is not None:
            if self.model.encoder is None:
                raise RequestError("--encoder-weights: of which ResNet? give --encoder")
            if self.fit.init_from is not None:
                raise RequestError("--encoder-weights and --init-from are two beginnings: give one")
        workers = self.worker_range[1]
        if self.fit.batch_size is not None and workers > (smallest := self.fit.images_per_pass):
            raise RequestError(
                f"--workers {self.workers}: {smallest} images of a forward pass (--batch-size over --accumulate) leave "
                f"some workers none; give at most {smallest} workers"
            )

    @property
    def worker_range(self) -> tuple[int, int]:
        """Least and most workers."""
        return worker_range(self.workers)

    @property
    def geometry(self) -> Geometry:
        """What --size or --crop ask for, of a run that is planned."""
        if self.crop is not None:
            return Geometry("native", self.crop)
        assert self.size is not None
        return Geometry("resize", self.size)


def check_batch_norm(settings: TrainSettings) -> None:
    """Raise RequestError if batch norm would see one value a channel in some forward pass: it has no variance."""
    network, fit = architecture(settings.model), settings.fit
    images = fit.images_per_pass
    if not settings.gpu:  # workers on GPUs share the statistics of small batches
        images //= settings.worker_range[1]
    height, width = settings.geometry.size
    encoder = network.get("encoder")
    has_batch_norm = network["norm"] == "batch" or encoder is not None
    if has_batch_norm and images == 1 and max(height, width) <= 1 << network["depth"]:
        where, otherwise = (
            (f"in {encoder}", "no --encoder") if encoder else (f"at --depth {network['depth']}", "--norm group")
        )
        raise RequestError(
            f"--batch-size {fit.batch_size}: one image of {height} x {width} pixels in a worker's forward pass leaves "
            f"batch norm one value a channel {where}; give 2 for each of --workers and --accumulate, larger images, or "
            f"{otherwise}"
        )


def check_batch(settings: TrainSettings, images: int) -> None:
    """Raise RequestError if a batch that is given, or planned, does not fit a set of so many training images."""
    batch = settings.fit.batch_size
    if (least := batch or settings.fit.accumulate * settings.worker_range[1]) > images:
        flag = "--batch-size" if batch else "--workers times --accumulate"
        raise RequestError(f"{flag} {least}: the set has {images} training images; give at most that")
    if batch is not None and (settings.size or settings.crop):
        check_batch_norm(settings)
