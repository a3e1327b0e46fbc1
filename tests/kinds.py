"""Small labelled sets of the kinds that jobs/README.md names, drawn: `write_set(kind, folder)`.

What a pixel is shows in its surroundings more than in its own colour: shapes are textures, on a ground of the same
colours.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from tests.conftest import write_pair
from unet.data.image import Array
from unet.data.labels import IGNORE
from unet.sample.scene import draw_scene

Scene = tuple[Array, Array]
"""Image, HWC, and mask, HW uint8."""


def _discs(rng: np.random.Generator, size: tuple[int, int], count: int, radius: tuple[float, float]) -> Array:
    """Return which disc each pixel lies in, from 1; 0 outside: [H, W] uint8."""
    y, x = np.mgrid[: size[0], : size[1]]
    found = np.zeros(size, np.uint8)
    for number in range(1, count + 1):
        r = rng.uniform(*radius)
        cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        stretch = rng.uniform(0.6, 1.6)
        found[((y - cy) * stretch) ** 2 + (x - cx) ** 2 < r * r] = number
    return found


def _stripes(size: tuple[int, int], period: float, angle: float) -> npt.NDArray[np.float64]:
    y, x = np.mgrid[: size[0], : size[1]]
    stripes: npt.NDArray[np.float64] = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    return stripes


def street(seed: int) -> Scene:
    """A scene of the sample set: 11 classes, 192x256."""
    return draw_scene(seed)


def medical(seed: int) -> Scene:
    """Two smooth blobs with grain, on a ground with shades of the same brightness; 0 and 255, 160x208."""
    rng, size = np.random.default_rng(seed), (160, 208)
    mask = (_discs(rng, size, 2, (18, 40)) > 0).astype(np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    shade = 60 * np.sin(x / rng.uniform(20, 50) + rng.uniform(0, 6)) + 40 * np.cos(y / rng.uniform(20, 50))
    grain = rng.normal(0, 1, size) * np.where(mask, 30, 6)
    gray = (120 + shade + grain).clip(0, 255)
    return np.stack([gray, gray * 0.8, gray * 0.7], -1).astype(np.uint8), mask * 255


def satellite(seed: int) -> Scene:
    """Fields of four crops in four bands of 16 bits, told apart by their furrows; 128x128."""
    rng, size = np.random.default_rng(seed), (128, 128)
    y, x = np.mgrid[: size[0], : size[1]]
    sites = rng.uniform(0, 128, (9, 2))
    nearest = ((y[..., None] - sites[:, 0]) ** 2 + (x[..., None] - sites[:, 1]) ** 2).argmin(-1)
    mask = rng.integers(0, 4, 9)[nearest].astype(np.uint8)
    furrows = np.choose(mask, [_stripes(size, period, 0.7) for period in (3, 5, 9, 17)])
    bands = np.stack([furrows * rng.uniform(500, 700) + 2000 + 300 * band for band in range(4)], -1)
    return (bands + rng.normal(0, 150, bands.shape)).clip(0, 4000).astype(np.uint16), mask


def rare(seed: int) -> Scene:
    """Small rings, a hundredth of all pixels, among discs of the same colour; 160x160."""
    rng, size = np.random.default_rng(seed), (160, 160)
    image = rng.normal(90, 12, (*size, 3))
    image[_discs(rng, size, 5, (7, 12)) > 0] += 70
    mask = np.zeros(size, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    for _ in range(2):
        cy, cx = rng.uniform(12, 148, 2)
        distance = np.hypot(y - cy, x - cx)
        mask[(distance > 3.5) & (distance < 7)] = 1
    image[mask == 1] += 70 - 70 * (image[mask == 1].mean(-1, keepdims=True) > 130)
    return image.clip(0, 255).astype(np.uint8), mask


def many(seed: int) -> Scene:
    """150 classes: ten colours by fifteen stripes; a dozen patches of them on a ground of class 0; 160x160."""
    rng, size = np.random.default_rng(seed), (160, 160)
    patches = _discs(rng, size, 12, (20, 45))
    classes = rng.integers(0, 150, 13)
    classes[0] = 0
    mask = classes[patches].astype(np.uint8)
    hues = np.random.default_rng(0).uniform(60, 200, (10, 3))
    waves = np.choose(mask // 50, [_stripes(size, period, 0.4) for period in (3, 6, 12)])
    angles = np.choose(mask // 10 % 5, [_stripes(size, 5, angle) for angle in (0.0, 0.6, 1.2, 1.8, 2.4)])
    image = hues[mask % 10] + 25 * waves[..., None] + 25 * angles[..., None] + rng.normal(0, 5, (*size, 3))
    return image.clip(0, 255).astype(np.uint8), mask


KINDS: dict[str, tuple[Callable[[int], Scene], int, int]] = {
    "street": (street, 60, 12),
    "medical": (medical, 60, 12),
    "satellite": (satellite, 60, 12),
    "rare": (rare, 80, 16),
    "many": (many, 120, 20),
    "dozen": (medical, 9, 3),
}
"""Of each kind what draws it, and how many images it trains and validates on."""


def write_set(kind: str, folder: Path) -> list[str]:
    """Write train/ and val/ of a set, and its label file; return the flags that name it."""
    draw, train, val = KINDS[kind]
    largest = 1
    for part, first, count in (("train", 0, train), ("val", 1000, val)):
        for seed in range(first, first + count):
            image, mask = draw(seed)
            if kind == "street":
                mask[mask == IGNORE] = 11  # the index that the label set ignores
            largest = max(largest, int(mask[mask < 255].max()))
            write_pair(folder / part, f"{seed:04}", image[..., :3].astype(np.uint8), mask)
            if image.shape[2] == 4:
                (folder / part / "images" / f"{seed:04}.png").unlink()
                tifffile.imwrite(
                    folder / part / "images" / f"{seed:04}.tif", image, photometric="minisblack", planarconfig="contig"
                )
    if kind in ("medical", "dozen"):
        return ["--data", str(folder), "--binary"]
    if kind == "street":
        return ["--data", str(folder), "--classes", "camvid"]
    names = [f"{index},class{index}" for index in range(150 if kind == "many" else largest + 1)]
    (folder / "classes.csv").write_text("\n".join(["index,name", *names]))
    return ["--data", str(folder), "--classes", str(folder / "classes.csv")]
