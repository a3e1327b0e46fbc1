"""The channels that a model is given: which bands of a file they are, and how their samples become 8 bits."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet.settings import Window

Samples = npt.NDArray[np.number[Any]]

MAX_CHANNELS = 32

SampleKind = Literal["8 bits", "whole numbers", "floating point"]
"""Of samples that windows may be for: a number means something else in each."""

WITHOUT_DATA = 127
"""What is put in place of a pixel without data: the middle of the network's input range."""


@dataclass(frozen=True)
class Channels:
    """Red, green and blue as displayed, gray as all three; or the bands of a file as they are stored."""

    bands: tuple[int, ...] | None = None
    """Numbers from 1, in the order of the channels; None: as displayed."""
    windows: tuple[Window, ...] = ()
    """Of each band. As displayed: none, or one for images of more than 8 bits, which else keep their high byte."""
    kinds: tuple[SampleKind, ...] = ()
    """Of bands: the samples that windows are for."""
    nodata: float | None = None
    """The sample of pixels that hold no data, of files that do not say it themselves."""

    @property
    def count(self) -> int:
        """Channels of the network's input."""
        return 3 if self.bands is None else len(self.bands)

    @property
    def window(self) -> Window | None:
        """Of images of more than 8 bits, as displayed."""
        return self.windows[0] if self.windows else None

    def to_json(self) -> dict[str, Any]:
        """Return what differs from RGB of 8 bits, as it stands in model.json."""
        windows = [[_plain(low), _plain(high)] for low, high in self.windows]
        found: dict[str, Any] = {} if self.nodata is None else {"nodata": self.nodata}
        if self.bands is None:
            return found | ({"window": windows[0]} if windows else {})
        return found | {"bands": list(self.bands), "windows": windows, "samples": list(self.kinds)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Channels":
        """Return the channels of which `to_json` returned `found`, among other things."""
        windows = found.get("windows") or ([found["window"]] if found.get("window") else [])
        bands = found.get("bands")
        return cls(
            None if bands is None else tuple(bands),
            tuple((low, high) for low, high in windows),
            tuple(found.get("samples", ())),
            found.get("nodata"),
        )


RGB = Channels()


def describe(channels: Channels) -> str:
    """Return in words what the channels are."""
    windows = [f"{low:.6g} to {high:.6g}" for low, high in channels.windows]
    if channels.bands is None:
        return "RGB" + (f", over 8 bits {windows[0]}" if windows else "")
    return ", ".join(f"band {band}: {window}" for band, window in zip(channels.bands, windows, strict=True))


def kind_of(samples: Samples) -> SampleKind:
    """Return what kind of numbers samples are."""
    if samples.dtype.kind == "f":
        return "floating point"
    return "8 bits" if samples.dtype == np.uint8 else "whole numbers"


def scale_to_8_bits(samples: Samples, window: Window | None) -> npt.NDArray[np.uint8]:
    """Return `samples` with those of `window` at 0 and 255, linear between them; without one, their high bytes."""
    if window is None:
        return (samples.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    low, high = window
    if samples.dtype == np.uint8 and (low, high) == (0, 255):
        return samples.astype(np.uint8, copy=False)
    scaled: npt.NDArray[Any] = samples.astype(np.float64 if samples.dtype.itemsize == 8 else np.float32)
    scaled -= low  # in place: there may be a hundred million
    scaled *= 255 / (high - low)
    return scaled.round(out=scaled).clip(0, 255, out=scaled).astype(np.uint8)


def _plain(number: float) -> float:
    """Return a whole number as an int, as versions before wrote it."""
    return int(number) if number == int(number) else number
