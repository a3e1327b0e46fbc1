"""The sample set: generated scenes in CamVid's layout, to train on without any data at hand.

Scenes of even number train, scenes of odd number validate. sample.json is written last and says which set is
complete: a set that is there is left alone, a half-written one is completed, another one is replaced.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unet.image import Array
from unet.palette import LABELS
from unet.scene import draw_scene

VERSION = 1
"""Counts changes of the generator: a folder written by another version is written anew."""


def write_sample_set(folder: Path, *, train: int = 240, val: int = 60) -> None:
    """Writes `train` and `val` scenes to `folder` in CamVid's layout; returns at once if they are there.

    train/ and val/ hold the images, trainannot/ and valannot/ palette masks of the same names.

    Raises:
        OSError: `folder` cannot be written.
    """
    marker = folder / "sample.json"
    wanted = {"version": VERSION, "train": train, "val": val}
    if not marker.is_file() or json.loads(marker.read_text()) != wanted:
        marker.unlink(missing_ok=True)
        for stale in folder.glob("*/scene-*.png"):
            stale.unlink()
    for parity, (split, count) in enumerate((("train", train), ("val", val))):
        for index in range(count):
            paths = [folder / name / f"scene-{index:05d}.png" for name in (split, f"{split}annot")]
            if not all(path.is_file() for path in paths):
                _write_pair(paths, *draw_scene(2 * index + parity))
    marker.write_text(json.dumps(wanted) + "\n")


def _write_pair(paths: Sequence[Path], image: Array, mask: Array) -> None:
    """The image as it is, the mask as CamVid's values with its colours for a palette."""
    values = np.full(256, next(label.value for label in LABELS.labels if label.ignore), np.uint8)
    values[: len(LABELS.classes)] = [label.value for label in LABELS.classes]
    palette = np.zeros((256, 3), np.uint8)
    palette[[label.value for label in LABELS.labels]] = [label.color for label in LABELS.labels]
    indexed = Image.fromarray(values[mask])
    indexed.putpalette(palette.tobytes())
    for path, picture in zip(paths, (Image.fromarray(image), indexed), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, compress_level=3)
