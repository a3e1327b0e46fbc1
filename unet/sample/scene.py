"""A generated street scene: sky, ground and walls, then what stands and moves between them, from far to near.

image: HWC uint8 RGB, mask: HW uint8 of CamVid class indices, `IGNORE` where void. A scene depends on its seed alone.
Classes share colours and the light changes with every scene: shape, texture and context tell what a pixel is.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image

from unet.data.image import Array
from unet.sample.canvas import SIZE, SUPERSAMPLING, Canvas
from unet.sample.palette import BUILDING, MUSTARD, PAVEMENT, ROAD, SKY, TIMBER, TREE, WHITE, Color, pick, shaded
from unet.sample.scenery import (
    paint_bicyclist,
    paint_bin,
    paint_building,
    paint_car,
    paint_fence,
    paint_lamp,
    paint_pedestrian,
    paint_sign,
    paint_tree,
)

GRAIN = {BUILDING: 5.0, ROAD: 6.0, PAVEMENT: 5.0, TREE: 9.0}
"""Strength of a material's fine texture, in grey levels."""

Thing = tuple[float, Callable[[], None]]
"""How far away it is [m], by which things are ordered, and what paints it."""


def draw_scene(seed: int) -> tuple[Array, Array]:
    """Scene number `seed`: image HWC uint8 RGB, mask HW uint8 of CamVid class indices.

    Raises:
        ValueError: `seed` is negative.
    """
    rng = np.random.default_rng(seed)
    canvas, street = Canvas(rng), _Street(rng)
    _paint_sky(canvas, rng)
    _paint_ground(canvas, street, rng)
    _paint_walls(canvas, street, rng)
    things = [*_furniture(canvas, street, -1, rng), *_furniture(canvas, street, 1, rng), *_traffic(canvas, street, rng)]
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    return _develop(canvas, rng)


class _Street:
    """Where kerbs and walls are, x in metres by side (-1 left, 1 right), and which ground is taken."""

    def __init__(self, rng: Generator) -> None:
        self.kerb = {side: side * rng.uniform(1.9, 2.8) for side in (-1, 1)}
        self.wall = {side: self.kerb[side] + side * rng.uniform(2.0, 2.8) for side in (-1, 1)}
        self._taken: list[tuple[float, float, float, float]] = []

    def claim(self, x: float, z: float, across: float, along: float) -> bool:
        """Whether the ground within `across` and `along` metres of a point was free; then it is taken."""
        free = all(abs(x - a) > across + c or abs(z - b) > along + d for a, b, c, d in self._taken)
        if free:
            self._taken.append((x, z, across, along))
        return free


def _paint_sky(canvas: Canvas, rng: Generator) -> None:
    """Clouds of four sizes before a sky that fades towards the horizon; all of the mask becomes sky."""
    height, width = SIZE
    clouds = np.full(SIZE, rng.uniform(-0.6, 0.5), np.float32)
    for octave in range(4):
        grid = rng.normal(size=(4 << octave, 3 << octave)).astype(np.float32)
        resized = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        clouds += np.asarray(resized) * np.float32(0.5 / 1.7**octave)
    rows = np.linspace(0, height / canvas.horizon * SUPERSAMPLING, height, dtype=np.float32).clip(0, 1) ** 1.2
    zenith, haze, tint = (np.array(color, np.float32) for color in (canvas.zenith, canvas.haze, canvas.tint))
    clear, cover = zenith + rows[:, None, None] * (haze - zenith), clouds.clip(0, 0.85)[..., None]
    pixels = (clear + cover * (haze * 0.5 + tint * 122 - clear)).clip(0, 255).astype(np.uint8)
    canvas.image.paste(Image.fromarray(pixels).resize(canvas.image.size, Image.Resampling.BILINEAR))
    canvas.mask.paste(SKY, (0, 0, *canvas.mask.size))


def _paint_ground(canvas: Canvas, street: _Street, rng: Generator) -> None:
    """Pavement from side to side, the road upon it with kerbs and markings, and the shade of the houses."""

    def strip(x0: float, x1: float, z0: float, z1: float, color: Color, label: int | None, alpha: int = 255) -> None:
        canvas.face([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], color, label, alpha=alpha)

    left, right = street.kerb[-1], street.kerb[1]
    asphalt = shaded((1, 1, 1.03), rng.uniform(70, 140))
    slab = shaded(((1, 1, 1), (1.04, 0.97, 0.86), (1.1, 0.92, 0.84))[rng.integers(3)], rng.uniform(120, 195))
    white: Color = WHITE if rng.random() < 0.8 else MUSTARD
    edges = 1.2 * 1.25 ** np.arange(19)
    for z0, z1 in pairwise(edges):  # in pieces, so that each fades into the haze
        strip(-90, 90, z0, z1, slab, PAVEMENT)
        strip(left, right, z0, z1, asphalt, ROAD)
        for side in (-1, 1):
            kerb = street.kerb[side]
            strip(kerb, kerb + side * 0.25, z0, z1, shaded(slab, 1.15), PAVEMENT)
            strip(kerb, kerb - side * 0.25, z0, z1, shaded(asphalt, 0.7), ROAD)
    for z in np.arange(3, 24, 1.1):
        strip(left - 0.25, left - 9, z, z + 0.08, shaded(slab, 0.7), PAVEMENT)
        strip(right + 0.25, right + 9, z, z + 0.08, shaded(slab, 0.7), PAVEMENT)
    for _ in range(rng.integers(1, 4)):  # mended asphalt
        x, z = rng.uniform(left + 0.3, right - 1.5), rng.uniform(3, 14)
        strip(x, x + 1.2, z, z * rng.uniform(1.1, 1.4), shaded(asphalt, rng.uniform(0.85, 1.12)), ROAD)
    for z in np.arange(rng.uniform(1.5, 4.5), 45, 4):
        strip(-0.08, 0.08, z, z + 1.8, white, ROAD)
    if rng.random() < 0.4:  # a crossing
        z = rng.uniform(6, 14)
        for x in np.arange(left + 0.4, right - 0.6, 1.0):
            strip(x, x + 0.5, z, z + 2.6, white, ROAD)
    shade = street.wall[1] if canvas.sun > 0 else street.wall[-1]
    strip(shade, shade - 7 * canvas.sun, 1.2, 60, (20, 24, 44), None, alpha=60)


def _paint_walls(canvas: Canvas, street: _Street, rng: Generator) -> None:
    """What closes the street, then both sides of it: buildings, here and there a tree."""
    for x in (-25, -13, 0.0, 0.01, 13, 25):
        paint_building(canvas, x, 60, 61, rng)
    for side in (-1, 1):
        edges = rng.uniform(1.5, 4) + np.cumsum(rng.uniform(6, 11, 6))
        for z0, z1 in reversed(list(pairwise(edges))):
            if rng.random() < 0.8:
                paint_building(canvas, street.wall[side] + side * rng.uniform(0, 0.6), z0, z1, rng)
            else:
                paint_tree(canvas, street.wall[side] + side * 2.5, (z0 + z1) / 2, rng)


def _furniture(canvas: Canvas, street: _Street, side: int, rng: Generator) -> Iterable[Thing]:
    """What stands and who walks on one pavement, and the fence behind."""
    kerb, wall = street.kerb[side], street.wall[side]
    near = canvas.nearest(kerb + 0.6 * side)
    kinds = [paint_lamp, paint_sign, paint_bin if rng.random() < 0.3 else paint_tree]
    for order, kind in enumerate(rng.permutation(3)):
        x, z = kerb + side * rng.uniform(0.4, 0.7), near * (1.12 + 0.36 * order) * rng.uniform(0.95, 1.1)
        street.claim(x, z, 0.3, 0.3)
        yield z, partial(kinds[kind], canvas, x, z, rng)
    for _ in range(rng.integers(1, 3)):
        x = kerb + side * rng.uniform(0.8, abs(wall - kerb) - 0.5)
        z = canvas.nearest(x) * rng.uniform(1.1, 1.3)
        if street.claim(x, z, 0.5, 0.9):
            yield z, partial(paint_pedestrian, canvas, x, z, rng)
    if rng.random() < 0.8:
        x, height, color, boards = wall - 0.3 * side, rng.uniform(1.5, 2.1), pick(TIMBER, rng), rng.random() < 0.5
        start = canvas.nearest(x) * rng.uniform(0.7, 0.95)
        for z in start + 1.6 * np.arange(rng.integers(3, 6)):
            yield z + 1, partial(paint_fence, canvas, x, z, height, color, boards)


def _traffic(canvas: Canvas, street: _Street, rng: Generator) -> Iterable[Thing]:
    """Parked and driving cars, bicyclists, somebody who crosses."""
    left, right = street.kerb[-1], street.kerb[1]
    for side in (-1, 1):
        x = street.kerb[side] - 1.0 * side
        z = canvas.nearest(x) * rng.uniform(1.2, 2.0) + 4
        for _ in range(rng.integers(1, 4) if rng.random() < 0.35 else 0):
            if street.claim(x, z, 1.0, 2.6):
                yield z, partial(paint_car, canvas, x, z, (0 if side > 0 else math.pi) + rng.normal() * 0.03, rng)
            z += rng.uniform(5.2, 8)
    for _ in range(rng.integers(1, 3)):
        x, z = rng.uniform(-0.8, 0.8), rng.uniform(9, 22)
        turn = rng.choice((0, 2, 1, -1)) * math.pi / 2 + rng.normal() * 0.1
        across = abs(math.sin(turn))
        if street.claim(x, z, 0.9 + 1.5 * across, 2.6 - 1.5 * across):
            yield z, partial(paint_car, canvas, x, z, turn, rng)
    for kind in [paint_bicyclist] * rng.integers(1, 3) + [paint_pedestrian] * rng.integers(1, 3):
        for _ in range(4):  # tries to find room
            x = rng.uniform(left + 0.5, right - 0.5)
            z = max(5.0, canvas.nearest(x) * 1.2) * rng.uniform(1.0, 1.5)
            if street.claim(x, z, 0.6, 0.6):
                yield z, partial(kind, canvas, x, z, rng)
                break


def _develop(canvas: Canvas, rng: Generator) -> tuple[Array, Array]:
    """Averages the painting down, and adds what materials, lens and sensor add."""
    mask = np.ascontiguousarray(np.asarray(canvas.mask)[1::SUPERSAMPLING, 1::SUPERSAMPLING])
    pixels = np.asarray(canvas.image.reduce(SUPERSAMPLING), np.float32)
    strength = np.full(256, 1.0, np.float32)
    strength[list(GRAIN)] = list(GRAIN.values())
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in SIZE)
    light = rng.uniform(0.9, 1.15) * (1 + rng.uniform(-0.06, 0.06) * np.array([1, 0, -1]))
    gain: npt.NDArray[np.float32] = np.float32(1) - np.float32(0.12) * (y[:, None] ** 2 + x**2)
    pixels += (strength[mask] * rng.standard_normal(SIZE, np.float32))[..., None]
    pixels *= gain[..., None] * light.astype(np.float32)
    pixels += rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0.5, 3))
    return pixels.clip(0, 255).astype(np.uint8), mask
