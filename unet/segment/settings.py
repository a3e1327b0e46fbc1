"""The settings of the segmentation job."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unet.model.settings import PredictSettings
from unet.settings import RequestError, at_least
from unet.storage.objects import split_uri

MaskFormat = Literal["png", "tiff"]

MASK_SUFFIXES: dict[MaskFormat, str] = {"png": ".png", "tiff": ".tif"}


@dataclass(frozen=True, kw_only=True)
class SegmentSettings(PredictSettings):
    """Segment every image of a folder or bucket that is new or changed."""

    input: str
    """Folder or s3://bucket/prefix of the images."""
    output: str
    """Folder or s3://bucket/prefix of the masks: the image KEY becomes OUTPUT/KEY.png. Reports, overlays and the
    ledger lie under OUTPUT/_segment/."""
    model: str
    """Model folder, local or on S3: model/ of a training run."""
    input_profile: str | None = None
    """Profile of ~/.aws/config with which the input, and the manifest, are read from S3. Default: what the environment
    says."""
    output_profile: str | None = None
    """Profile of ~/.aws/config with which the output is read and written on S3. Default: what the environment says."""
    include: tuple[str, ...] = ()
    """Patterns of the keys to segment, as in 2026/*: names that end like an image, or have no ending. A pattern with an
    ending, as *.bin, takes whatever it fits. Default: all names that end like an image."""
    exclude: tuple[str, ...] = ()
    """Patterns of the keys to leave out."""
    manifest: str | None = None
    """What is segmented in place of a listing: a CSV or Parquet file with a column key, or the manifest.json of an S3
    Inventory. Where it has etag and size too, no other request is made to find the objects."""
    list_workers: int | None = None
    """Ranges of keys that are listed at a time, of an input that the ledger knows. Default: as many as the latency of
    the server asks for."""
    limit: int | None = None
    """Segment at most this many images in this run."""
    write: str = "mask"
    """What to write, with commas: mask, overlay (mask over image), confidence (255: certain)."""
    mask_format: MaskFormat = "png"
    """png, or tiff: KEY.tif, with the georeference of a GeoTIFF and a value for pixels without data. One for all of an
    output."""
    objects: str | None = None
    """Classes, with commas, whose objects (pixels that are connected) are written as rows with box, area and polygon,
    to Parquet files under OUTPUT/_segment/objects/."""
    min_area: int = 1
    """With --objects: pieces of fewer pixels are left out, and counted."""
    max_pixels: int = 1 << 28
    """Images of more pixels fail unread."""
    max_bytes: int = 1 << 28
    """Objects of more bytes are skipped."""
    retry_for: float = 120.0
    """Seconds for which a request to S3 that fails for a transient reason is repeated, before the object fails."""
    time_limit: float | None = None
    """Seconds after which the run ends itself as SIGTERM would, with exit code 143; the same command goes on."""
    lease: float = 60.0
    """Seconds for which nothing is seen of a run on S3 before another may take its output over. At least 2."""
    max_failed: str = "0"
    """Exit with 3 if more objects fail, vanish or are replaced meanwhile than this number, or share as in 5%. With a
    number over 0 the run ends as soon as they are more, with a share once 1,000 objects were tried."""
    drift_limit: float = 0.25
    """Population stability index of a channel's histogram, or of the shares of the classes, against training, over
    which a run is said to have drifted."""
    drift_confidence: float = 0.05
    """Fall of the mean confidence below that in validation over which a run is said to have drifted."""
    retry_failed: bool = False
    """Try objects again that failed before and have not changed since."""
    force: bool = False
    """Segment everything anew. What an interrupted run with --force has done already is not done again."""
    verify: bool = False
    """List the masks too, and make missing and altered ones again."""
    prune: bool = False
    """Delete the masks of images that are gone. Without it they are counted."""
    max_delete: str = "10%"
    """With --prune: delete nothing if more masks than this number, or share of all, have lost their image."""
    allow_empty: bool = False
    """An input without a single image is no mistake."""
    dry_run: bool = False
    """Say what would be done and why; change nothing."""
    preview: int | None = None
    """Segment a random sample of so many recorded images, compare with their masks, and change none: what --model
    would change, before it does. The page is OUTPUT/_segment/previews/ID/index.html."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("input", "output", "model"):
            if not getattr(self, name):
                raise RequestError(f"--{name}: name a folder or s3://bucket/prefix")
        for name in ("input", "output"):
            if getattr(self, f"{name}_profile") and not getattr(self, name).startswith("s3://"):
                raise RequestError(f"--{name}-profile: --{name} {getattr(self, name)} is not on S3; leave it out")
        unknown = set(self.outputs) - {"mask", "overlay", "confidence"}
        if unknown or "mask" not in self.outputs:
            raise RequestError(f"--write {self.write}: give mask, and with commas overlay and confidence")
        for name in ("limit", "list_workers", "min_area", "max_pixels", "max_bytes"):
            if getattr(self, name) is not None:
                at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        at_least("--drift-limit", self.drift_limit, 0)
        at_least("--drift-confidence", self.drift_confidence, 0)
        if self.objects is not None and not self.object_classes:
            raise RequestError("--objects: name classes, with commas, or leave it out")
        at_least("--retry-for", self.retry_for, 0)
        at_least("--lease", self.lease, 2)
        if self.time_limit is not None:
            at_least("--time-limit", self.time_limit, 0)
        partial = [flag for flag in ("include", "exclude", "manifest", "limit") if getattr(self, flag)]
        if self.prune and partial:
            raise RequestError(f"--prune needs a whole listing; leave --{' and --'.join(partial)} out")
        self.failures_allowed(0)
        self.deletions_allowed(0)
        if self.preview is not None:
            self._check_preview()

    def _check_preview(self) -> None:
        """Raise RequestError for what has no meaning where nothing is listed and no mask is written."""
        at_least("--preview", self.preview or 0, 1)
        others = (
            "manifest",
            "limit",
            "list_workers",
            "objects",
            "retry_failed",
            "force",
            "verify",
            "prune",
            "allow_empty",
            "dry_run",
        )
        given = [f"--{name.replace('_', '-')}" for name in others if getattr(self, name)]
        given += ["--write"] * (self.outputs != ("mask",))
        if given:
            raise RequestError(
                f"--preview only compares, with a sample of what is recorded; leave {' and '.join(given)} out"
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        """What --write names."""
        return tuple(sorted(name.strip() for name in self.write.split(",")))

    @property
    def object_classes(self) -> tuple[str, ...]:
        """What --objects names."""
        return tuple(sorted({name.strip() for name in (self.objects or "").split(",")} - {""}))

    def check_classes(self, names: Sequence[str]) -> None:
        """Raise RequestError if --objects names a class that is not among `names`, those of the model."""
        if unknown := set(self.object_classes) - set(names):
            raise RequestError(
                f"--objects {self.objects}: the model has no class {', '.join(sorted(unknown))}; it has "
                f"{', '.join(names)}"
            )

    def failures_allowed(self, attempted: int) -> float:
        """Return how many of `attempted` objects may fail."""
        return _allowed("--max-failed", self.max_failed, attempted)

    def deletions_allowed(self, recorded: int) -> float:
        """Return how many of `recorded` masks may be deleted."""
        return _allowed("--max-delete", self.max_delete, recorded)


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Say of a mask of which image, by which model and run it was made, and whether the same would be made today."""

    mask: str
    """The mask, s3://bucket/prefix/KEY.png or a file; with --output the key of its image. Given first it needs no
    flag."""
    output: str | None = None
    """Output of the segmentation, in which the mask is looked for. Default: the folder above it that has a ledger."""
    model: str | None = None
    """Model folder of which to say whether it would make the same mask, with the settings of the run that made it."""
    input_profile: str | None = None
    """Profile of the AWS configuration with which the image is looked up."""
    output_profile: str | None = None
    """Profile of the AWS configuration with which masks and ledger are read."""

    def __post_init__(self) -> None:
        if not self.mask or (self.output is None and self.mask.startswith("s3://") and not split_uri(self.mask)[1]):
            raise RequestError(f"--mask {self.mask}: names no file; give that of a mask")


def _allowed(flag: str, text: str, total: int) -> float:
    """Return a number, or share of `total`, that a flag gives. Raise RequestError if it is neither."""
    try:
        value = float(text.strip().rstrip("%"))
    except ValueError:
        value = -1.0
    is_share = text.strip().endswith("%")
    if not 0 <= value < math.inf or (is_share and value > 100):
        raise RequestError(f"{flag} {text}: give a number as in 10, or a share as in 5%")
    return value / 100 * total if is_share else value
