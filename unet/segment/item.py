"""An object to segment, and what became of it: all that travels between the driver and its workers."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

STAGES = ("fetch", "decode", "predict", "write")


@dataclass(frozen=True)
class Item:
    """An object to segment."""

    key: str
    etag: str
    size: int
    outputs: str = "mask"
    """What is to be written, with commas."""
    there: str = ""
    """What is there already and stays as it is."""
    mask_etag: str | None = None
    """Of the mask that is recorded, if there is one."""
    mask_fence: int | None = None
    """Of the run that made it."""
    objects: str | None = None
    """The part that holds its objects."""


@dataclass
class Outcome:
    """What became of an object."""

    status: str
    """done, failed, vanished or changed."""
    error: str | None = None
    permanent: bool = False
    """Whether the same bytes and settings will fail again."""
    fault: str | None = None
    """Of a failure that other objects may meet as well: denied or unreachable."""
    mask_etag: str | None = None
    seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    class_pixels: npt.NDArray[np.int64] | None = None
    """Pixels of the mask by class index, of those with data."""
    histograms: npt.NDArray[np.float64] | None = None
    """Share of each bin in the pixels of the image, by channel: see `unet.data.drift`."""
    no_data: int = 0
    """Pixels of the image that hold no data."""
    size: tuple[int, ...] = ()
    """Height, width and channels of the image."""
    confidence: float | None = None
    """Mean softmax probability of the mask's class, of pixels with data."""
    unsure: float | None = None
    """Share of those pixels where it is below a half."""
    objects: pa.Table | None = None
    """Of the mask, where asked for: as object_parts.find_objects returns them."""
    small_objects: int = 0
    """How many were left out as too small."""
    thumbnail: tuple[int, str, bytes] | None = None
    """A candidate for the contact sheet: rank, key, JPEG."""
