"""Which labelled set, and how its images are augmented."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from unet.data.channels import MAX_CHANNELS
from unet.settings import RequestError, Window, at_least

Part = Literal["val", "train", "all"]
"""Of a labelled set."""

MaskOrientation = Literal["auto", "stored", "displayed"]
"""Of a mask whose image EXIF turns; auto: as their sizes say."""


@dataclass(frozen=True, kw_only=True)
class SetSettings:
    """The labelled set."""

    data: str | None = None
    """Folder of the labelled set, laid out as images/ + masks/ (with train/ and val/ inside or around them), as CamVid
    (train/ trainannot/ val/ valannot/, or as published), Cityscapes, Pascal VOC, ADE20K or Carvana, or as
    image-segmentation-keras, MMSegmentation, nnU-Net or Roboflow does."""
    images: str | None = None
    """Folder of images, in place of --data; needs --masks."""
    masks: str | None = None
    """Folder of masks, in place of --data; needs --images."""
    image_suffix: str = ""
    """What the names of images end with before .png or its like, as in NAME_sat.jpg: _sat. Other files are left out."""
    mask_suffix: str = ""
    """What the names of masks end with before .png or its like, as in NAME_mask.png: _mask."""
    mask_orientation: MaskOrientation = "auto"
    """How masks lie whose photos EXIF turns: as these are stored, or as they are displayed. auto: as the sizes of some
    say for all; refused if none do."""
    val_data: str | None = None
    """Labelled set to validate on, laid out as --data. Default: the val part of --data, else a split."""
    val_fraction: float = 0.2
    """Share of images to validate on where the set has no val part; chosen by a hash of the key, so that an image
    stays on its side as the set grows."""
    classes: str | None = None
    """Label set: camvid, camvid32 (as published, in 32 colours), cityscapes, voc, or a CSV with the columns
    index,name,red,green,blue[,ignore], where rows of one name are one class; or the labelmap.txt of CVAT, the
    _classes.csv of Roboflow, the dataset.json of nnU-Net. Needed to train on your own data; to score a model, its own
    by default."""
    binary: bool = False
    """In place of --classes: masks hold 0 and 255, or 0 and 1: background and foreground."""
    score_ignore: bool = False
    """Train and score the ignored labels as classes of their own."""
    skip_damaged: float = 0.0
    """Share of the pairs that may be damaged, and are then left out: files that are no image, or not a whole one. The
    check reads every pair for it."""
    check_limit: int = 5000
    """How many pairs are read in full before anything starts; of a larger set, a random sample of about that many."""

    def __post_init__(self) -> None:
        if (self.images is None) != (self.masks is None):
            raise RequestError(
                "--images and --masks go together: give both, or --data; masks to score, of jobs/evaluate.py, are "
                "--predictions"
            )
        if self.data is not None and self.images is not None:
            raise RequestError("--data and --images/--masks are two ways to name the same set: give one")
        if self.binary and self.classes is not None:
            raise RequestError("--binary and --classes both say what the values of the masks mean: give one")
        if not 0 < self.val_fraction < 1:
            raise RequestError(f"--val-fraction {self.val_fraction} must lie between 0 and 1")
        at_least("--check-limit", self.check_limit, 1)
        if not 0 <= self.skip_damaged < 1:
            raise RequestError(f"--skip-damaged {self.skip_damaged} must lie in 0..1, 1 excluded")

    @property
    def folder(self) -> str | None:
        """The folder of the set, or of its images."""
        return self.data if self.images is None else self.images

    @property
    def labels(self) -> str | None:
        """The name of the label set, as `labels.read_labels` takes it; None if it is not said."""
        return "binary" if self.binary else self.classes


@dataclass(frozen=True, kw_only=True)
class DataSettings(SetSettings):
    """The labelled set. Without --data or --images: a generated sample set."""

    bands: tuple[int, ...] | None = None
    """Bands of the images that become the channels of the model's input, from 1, in this order, up to 32; pages show
    the first three, or the first as gray. Default: red, green and blue of images that are gray or in colours of 8 bits,
    or gray of 16; all bands of others."""
    window: tuple[float, ...] | None = None
    """Samples LOW HIGH of images of more than 8 bits that become 0 and 255, for all or once for each of --bands; part
    of the model. Default: percentiles 0.5 and 99.5 of those that the check reads."""
    nodata: float | None = None
    """Sample of pixels that hold no data, where a GeoTIFF does not say it: what has it in all bands is ignored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.binary and self.folder is None:
            raise RequestError("--binary: the generated sample set has 11 classes; give --data, or leave the flag out")
        if self.folder is not None and super().labels is None:
            raise RequestError(
                "--classes: say what the values of the masks mean: camvid, cityscapes, voc or a label file; or give "
                "--binary for masks of 0 and 255"
            )
        given = " ".join(f"{sample:g}" for sample in self.window or ())
        if self.window is not None and (not self.window or len(self.window) % 2):
            raise RequestError(f"--window {given}: give LOW HIGH, or LOW HIGH of each band")
        if not all(map(math.isfinite, self.window or ())) or any(low >= high for low, high in self.windows):
            raise RequestError(f"--window {given}: LOW must be below HIGH")
        if self.bands is not None and not (0 < len(self.bands) <= MAX_CHANNELS and min(self.bands) > 0):
            listed = " ".join(map(str, self.bands))
            raise RequestError(f"--bands {listed}: give up to {MAX_CHANNELS} numbers of bands, from 1")

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows that --window names."""
        samples = [int(sample) if sample == int(sample) else sample for sample in self.window or ()]
        return tuple(zip(samples[::2], samples[1::2], strict=True))

    @property
    def labels(self) -> str:
        """The name of the label set, as `labels.read_labels` takes it; the sample set's is camvid."""
        return super().labels or "camvid"


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
    gamma: float = 0.4
    """Samples, as shares of white, are raised to the power of e ** +- this: other light."""
    white_balance: float = 0.1
    """Red, green and blue are each multiplied by e ** +- this: light of another colour."""
    class_mix: float | None = None
    """Probability that the pixels of half of the classes of another image are laid over it. Default: 0.5 where each
    image is shown 50 times or more, else 0."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise RequestError(f"--scale {low} {high}: LOW must be above 0 and at most HIGH")
        for name in (item.name for item in fields(self) if item.name not in ("scale", "rotate", "elastic")):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise RequestError(f"--{name.replace('_', '-')} {getattr(self, name)} must lie in 0..1")
        if not 0 <= self.elastic <= 0.1 or not 0 <= self.rotate <= 180:
            raise RequestError("--elastic must lie in 0..0.1 and --rotate in 0..180")
