"""The evaluation job."""

from dataclasses import dataclass
from typing import Literal

from unet.data.settings import DataSettings
from unet.model.settings import PredictSettings
from unet.settings import RequestError


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(PredictSettings):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.masks is None):
            raise RequestError("--model, or --masks to score masks already written: give one of them")
        if self.masks is not None and self.classes is None:
            raise RequestError("--classes: say what the values of the masks mean: camvid, or a label file")
        if self.score_ignore and self.classes is None:
            raise RequestError("--score-ignore goes with --classes; a model's own labels say what it scores")
        for flag, folder in (("--data", self.data), ("--output", self.output)):
            if not folder:
                raise RequestError(f"{flag}: name a folder or s3://bucket/prefix")

    def set_of(self, classes: str) -> DataSettings:
        """The labelled set as training names it."""
        return DataSettings(
            data=self.data, classes=classes, val_fraction=self.val_fraction, check_limit=self.check_limit
        )
