"""Train a U-Net on a labelled image set and segment buckets of images with it, on Ray."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.model.artifact import Model
    from unet.model.predictor import Predictor

__all__ = ["Model", "Predictor", "__version__"]

__version__ = "0.2.0"

_OFFERED = {"Model": "unet.model.artifact", "Predictor": "unet.model.predictor"}
"""Imported when asked for: PyTorch takes seconds, which `import unet` alone and the help of a job need not wait for."""


def __getattr__(name: str) -> Any:
    if name not in _OFFERED:
        raise AttributeError(f"module 'unet' has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFERED[name]), name)
