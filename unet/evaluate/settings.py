"""The evaluation job."""

from dataclasses import dataclass, field

from unet.data.settings import Part, SetSettings
from unet.model.settings import PredictSettings
from unet.settings import RequestError


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(PredictSettings):
    """Score a model, or masks already written, on a labelled set, at the size of its masks."""

    output: str
    """Folder or s3://bucket/prefix of scores.json, images.parquet and the page, index.html."""
    model: str | None = None
    """Model folder, local or on S3: model/ of a training run."""
    against: str | None = None
    """Folder of another model, scored on the same images: how much higher the mean IoU of --model is, with the interval
    that 95 % of 10,000 bootstrap resamples of the images lie in."""
    predictions: str | None = None
    """Folder of masks that jobs/segment.py has written for the set's images, to be scored in place of a model's."""
    part: Part = "val"
    """Which part of the set to score. val: its validation part or, where it has none, what training chose to validate
    on (--val-fraction). all: every image, nothing is split. Only what is scored is read."""
    data: SetSettings = field(default_factory=SetSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.predictions is None):
            raise RequestError("--model, or --predictions to score masks already written: give one of them")
        if self.against is not None and self.model is None:
            raise RequestError("--against compares a --model with another; give --model in place of --predictions")
        if self.data.labels is None:
            if self.predictions is not None:
                raise RequestError("--classes: say what the values of the masks mean: camvid, or a label file")
            if self.data.score_ignore:
                raise RequestError("--score-ignore goes with --classes; a model's own labels say what it scores")
        if not self.data.folder:
            raise RequestError("--data: name the set, a folder or s3://bucket/prefix, or give --images and --masks")
        if not self.output:
            raise RequestError("--output: name a folder or s3://bucket/prefix")
