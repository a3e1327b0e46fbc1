"""Samples of more than 8 bits as the 8 bits that a network is given."""

from typing import Any

import numpy as np
import numpy.typing as npt

from unet.settings import Window

Samples = npt.NDArray[np.integer[Any]]


def scale_to_8_bits(samples: Samples, window: Window | None) -> npt.NDArray[np.uint8]:
    """Return `samples` with those of `window` at 0 and 255, linear between them; without one, their high bytes."""
    if window is None:
        return (samples.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    low, high = window
    scaled = samples.astype(np.float32)
    scaled -= low  # in place: there may be a hundred million
    scaled *= 255 / (high - low)
    return scaled.round(out=scaled).clip(0, 255, out=scaled).astype(np.uint8)
