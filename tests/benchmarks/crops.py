"""How fast crops of 512x512 are cut from files of each kind, decoded anew each time.

A part of `python -m tests.benchmarks.training --data-only`; by itself `python -m tests.benchmarks.crops FOLDER`.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from unet.data.image import Array
from unet.data.labels import Label, LabelSet
from unet.data.layouts import Pair
from unet.data.settings import AugmentSettings
from unet.settings import Geometry
from unet.train import examples
from unet.train.examples import BatchRequest, BatchSpec, make_batch
from unet.train.schedule import Sample

COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
LABELS = LabelSet(tuple(Label(value=v, name=f"{v}", color=tuple(color)) for v, color in enumerate(COLORS.tolist())))
SECONDS, MOST = 15.0, 100
"""For how long, and how many crops, a kind of file is tried."""


def photo(side: int) -> Array:
    """Smooth, with a little noise, so that it compresses about as a photograph does; HWC RGB."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (side // 40, side // 40, 3)).astype(np.uint8))
    image = np.array(small.resize((side, side), Image.Resampling.BICUBIC))
    for rows in np.array_split(image, 20):
        rows[:] = (rows.astype(np.int16) + rng.integers(-4, 5, rows.shape)).clip(0, 255)
    return image


def files(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Write the files that are not there; yield names of their kinds, images and masks."""
    tiles: dict[str, Any] = {"tile": (256, 256)}
    strips: dict[str, Any] = {"rowsperstrip": 16}
    image = photo(10_000)
    mask = (np.add.outer(np.arange(10_000) // 37, np.arange(10_000) // 53) % 3).astype(np.uint8)
    tiff_mask, png_mask, rgb_mask, small_mask = (folder / name for name in ("m.tif", "m.png", "rgb.png", "s.png"))
    tifffile.imwrite(tiff_mask, mask, compression="deflate", **tiles)
    for name, options in (
        ("tiled", {"compression": "deflate", "predictor": True, **tiles}),
        ("tiled, uncompressed", tiles),
        ("tiled, JPEG", {"compression": "jpeg", **tiles}),
        ("striped", {"compression": "lzw", "predictor": True, **strips}),
        ("striped, uncompressed", strips),
    ):
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, image, photometric="rgb", **options)
        yield f"TIFF 10000x10000 {name}", path, tiff_mask
        path.unlink()
    image, mask = image[:8000, :8000], mask[:8000, :8000]
    Image.fromarray(mask).save(png_mask)
    Image.fromarray(COLORS[mask]).save(rgb_mask)
    Image.fromarray(image).save(folder / "i.jpg", quality=90)
    yield "JPEG 8000x8000", folder / "i.jpg", png_mask
    yield "JPEG 8000x8000, RGB mask", folder / "i.jpg", rgb_mask
    Image.fromarray(image).save(folder / "i.png", compress_level=1)
    yield "PNG 8000x8000", folder / "i.png", png_mask
    Image.fromarray(image[:360, :480]).save(folder / "s.jpg", quality=90)
    Image.fromarray(mask[:360, :480]).save(small_mask)
    yield "JPEG 480x360", folder / "s.jpg", small_mask


def crops(folder: str) -> None:
    """Print images a second and CPU seconds an image for each kind of file."""
    examples.CACHE_BYTES = 0
    spec = BatchSpec(LABELS, Geometry("native", (512, 512)), AugmentSettings(), seed=0)
    for name, image, mask in files(Path(folder)):
        began, used, made = time.perf_counter(), time.process_time(), 0
        while made < MOST and time.perf_counter() - began < SECONDS:
            samples = tuple(Sample(0, made + number) for number in range(4))
            make_batch(BatchRequest((Pair(name, str(image), str(mask)),) * 4, samples), spec)
            made += 4
        cpu, seconds = time.process_time() - used, time.perf_counter() - began
        print(f"{name:38} {made / seconds:7.1f} images/s, {cpu / made:7.4f} CPU s an image", flush=True)


if __name__ == "__main__":
    crops(sys.argv[1])
