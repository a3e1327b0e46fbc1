"""The generated sample set: street scenes in CamVid's classes, to train on without any data at hand.

image: HWC uint8 RGB, mask: HW uint8 class indices, `IGNORE` where void. A scene is a small world in metres (x right,
y up, z ahead), painted far things first; every polygon goes to the image and, as its class, to the mask, so the two
agree. Classes share colours and the light changes with every scene: shape, texture and context tell what a pixel is.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from unet.image import Array
from unet.labels import BUILT_IN, IGNORE

SIZE = (192, 256)
"""Height and width of a scene in pixels."""

VERSION = 1
"""Counts changes of the generator: a folder written by another version is written anew."""

SUPERSAMPLING = 2
"""Scenes are painted this many times larger, then averaged: smooth edges."""

LABELS = BUILT_IN["camvid"]
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(len(LABELS.classes))

Color = tuple[float, float, float]
Points = Sequence[tuple[float, float, float]]
Rng = np.random.Generator
Thing = tuple[float, Callable[[], None]]
"""How far away it is [m], by which things are ordered, and what paints it."""

# fmt: off
BRICK, SAND, CREAM, SLATE, TEAL = (166, 84, 66), (212, 188, 148), (234, 224, 204), (96, 108, 122), (70, 128, 128)
NAVY, RED, MUSTARD, SAGE, PLUM = (52, 70, 110), (196, 58, 50), (224, 172, 70), (150, 168, 138), (112, 74, 102)
WHITE, COAL, BLUE, ROSE, WOOD = (236, 236, 232), (54, 56, 62), (104, 152, 204), (210, 148, 138), (148, 104, 70)
STONE = (150, 146, 140)
WALLS = (BRICK, BRICK, SAND, CREAM, SLATE, SAGE, ROSE, STONE, MUSTARD, BLUE)
CARS = (RED, WHITE, COAL, NAVY, TEAL, BLUE, MUSTARD, SLATE, BRICK)
METAL = (COAL, SLATE, STONE, TEAL, COAL)
TIMBER = (WOOD, WOOD, WHITE, SAGE, COAL, BRICK)
CLOTHES = (NAVY, PLUM, RED, ROSE, COAL, WHITE, TEAL)
JERSEYS = (MUSTARD, RED, WHITE, BLUE)
BOARDS = (RED, NAVY, RED, BLUE, TEAL)
FOLIAGE = ((84, 124, 58), (60, 100, 66), (116, 142, 70), (94, 132, 80), (186, 132, 58), (168, 84, 54), (206, 150, 158))
SKIN = ((238, 200, 172), (208, 158, 124), (150, 104, 76), (100, 68, 52))

SKIES: tuple[tuple[Color, Color, Color, float], ...] = (
    ((74, 134, 204), (192, 216, 234), (1.04, 1.0, 0.95), 0.004),  # clear
    ((112, 158, 202), (226, 226, 216), (1.02, 0.99, 0.94), 0.012),  # hazy
    ((168, 174, 182), (206, 209, 212), (0.86, 0.88, 0.92), 0.010),  # overcast
    ((116, 124, 136), (168, 172, 176), (0.78, 0.80, 0.85), 0.008),  # about to rain
    ((98, 126, 178), (248, 204, 156), (1.08, 0.92, 0.74), 0.010),  # golden hour
    ((52, 60, 104), (206, 146, 138), (0.74, 0.68, 0.80), 0.008),  # dusk
    ((196, 204, 206), (220, 222, 220), (0.94, 0.94, 0.94), 0.025),  # fog
)
# fmt: on
"""Colour overhead, colour at the horizon, colour of the light, density of the haze per metre."""

GRAIN = {BUILDING: 5.0, ROAD: 6.0, PAVEMENT: 5.0, TREE: 9.0}
"""Strength of a material's fine texture, in grey levels."""


def draw_scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[Array, Array]:
    """Scene number `seed` at `size` (height, width): image HWC uint8 RGB, mask HW uint8 of CamVid class indices.

    Raises:
        ValueError: `seed` is negative.
    """
    rng = np.random.default_rng(seed)
    canvas, street = _Canvas(size, rng), _Street(rng)
    _paint_sky(canvas, rng)
    _paint_ground(canvas, street, rng)
    _paint_walls(canvas, street, rng)
    things = [*_furniture(canvas, street, -1, rng), *_furniture(canvas, street, 1, rng), *_traffic(canvas, street, rng)]
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    return _develop(canvas, rng)


def write_sample_set(folder: Path, *, train: int = 240, val: int = 60, seed: int = 0) -> None:
    """Writes `train` and `val` scenes to `folder` in CamVid's layout; returns at once if they are there.

    train/ and val/ hold the images, trainannot/ and valannot/ palette masks of the same names. sample.json, written
    last, says which set is complete. Scenes of even number train, scenes of odd number validate.

    Raises:
        OSError: `folder` cannot be written.
    """
    marker = folder / "sample.json"
    wanted = {"version": VERSION, "train": train, "val": val, "seed": seed, "size": list(SIZE)}
    if not marker.is_file() or json.loads(marker.read_text()) != wanted:
        marker.unlink(missing_ok=True)
        for stale in folder.glob("*/scene-*.png"):
            stale.unlink()
    for parity, (split, count) in enumerate((("train", train), ("val", val))):
        for index in range(count):
            paths = [folder / name / f"scene-{index:05d}.png" for name in (split, f"{split}annot")]
            if not all(path.is_file() for path in paths):
                _write_pair(paths, *draw_scene(2 * (seed * 1_000_000 + index) + parity))
    marker.write_text(json.dumps(wanted) + "\n")


def _write_pair(paths: Sequence[Path], image: Array, mask: Array) -> None:
    values = np.full(256, next(label.value for label in LABELS.labels if label.ignore), np.uint8)
    values[: len(LABELS.classes)] = [label.value for label in LABELS.classes]
    palette = np.zeros((256, 3), np.uint8)
    palette[[label.value for label in LABELS.labels]] = [label.color for label in LABELS.labels]
    indexed = Image.fromarray(values[mask])
    indexed.putpalette(palette.tobytes())
    for path, picture in zip(paths, (Image.fromarray(image), indexed), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, compress_level=3)


class _Street:
    """Where kerbs and walls are, x in metres by side (-1 left, 1 right), and which ground is taken."""

    def __init__(self, rng: Rng) -> None:
        self.kerb = {side: side * rng.uniform(1.9, 2.8) for side in (-1, 1)}
        self.wall = {side: self.kerb[side] + side * rng.uniform(2.4, 3.2) for side in (-1, 1)}
        self._taken: list[tuple[float, float, float, float]] = []

    def claim(self, x: float, z: float, across: float, along: float) -> bool:
        """Whether the ground within `across` and `along` metres of a point was free; then it is taken."""
        free = all(abs(x - a) > across + c or abs(z - b) > along + d for a, b, c, d in self._taken)
        if free:
            self._taken.append((x, z, across, along))
        return free


class _Canvas:
    """Image and mask being painted, the camera, the light."""

    def __init__(self, size: tuple[int, int], rng: Rng) -> None:
        self.size = size
        self.height, self.width = (side * SUPERSAMPLING for side in size)
        self.focal = self.width * rng.uniform(0.8, 0.95)
        self.centre, self.horizon = self.width * rng.uniform(0.4, 0.6), self.height * rng.uniform(0.40, 0.5)
        self.eye = rng.uniform(1.9, 2.6)  # metres above the road
        self.zenith, self.haze, self.tint, fog = SKIES[rng.integers(len(SKIES))]
        self.fog = fog * rng.uniform(0.6, 1.4)
        self.sun = rng.choice((-1, 1)) * rng.uniform(0.3, 1.0)  # from where it shines: -1 left, 1 right
        self.image, self.mask = (Image.new(mode, (self.width, self.height)) for mode in ("RGB", "L"))
        self._colors, self._classes = ImageDraw.Draw(self.image, "RGBA"), ImageDraw.Draw(self.mask)

    def project(self, points: Points) -> list[tuple[float, float]]:
        """World points to pixels."""
        scaled = ((x, self.eye - y, self.focal / z) for x, y, z in points)
        return [(self.centre + x * scale, self.horizon + y * scale) for x, y, scale in scaled]

    def nearest(self, x: float) -> float:
        """The distance [m] from which on a point at `x` is in the picture."""
        return self.focal * abs(x) / (self.centre if x < 0 else self.width - self.centre)

    def tone(self, color: Color, z: float, alpha: int = 255) -> tuple[int, ...]:
        """`color` in this light, through `z` metres of haze."""
        clear = math.exp(-self.fog * z)
        (r, g, b), (s, t, u), (h, i, j) = color, self.tint, self.haze
        lit = (clear * (r * s - h) + h, clear * (g * t - i) + i, clear * (b * u - j) + j)
        return min(int(lit[0]), 255), min(int(lit[1]), 255), min(int(lit[2]), 255), alpha

    def face(self, points: Points, color: Color, label: int | None, *, alpha: int = 255) -> None:
        """A polygon. Without a label it is a detail of what is there, and the mask stays."""
        corners = self.project(points)
        self._colors.polygon(corners, self.tone(color, points[0][2], alpha))
        if label is not None:
            self._classes.polygon(corners, label)

    def blob(self, centre: tuple[float, float, float], radius: float, color: Color, label: int) -> None:
        """A ball of `radius` metres."""
        (x, y), r = self.project([centre])[0], radius * self.focal / centre[2]
        self._colors.ellipse((x - r, y - r, x + r, y + r), self.tone(color, centre[2]))
        self._classes.ellipse((x - r, y - r, x + r, y + r), label)

    def shadow(self, x: float, z: float, across: float, along: float) -> None:
        """The soft dark patch under a thing."""
        for size, alpha in ((1.0, 36), (0.75, 44)):
            circle = _circle(-0.4 * self.sun, 0, size)
            self.face([(x + u * across, 0, z + v * along) for u, v, _ in circle], (14, 16, 26), None, alpha=alpha)


@dataclass(frozen=True)
class _Model:
    """A thing in its own coordinates (u right, v up, w ahead [m]), turned about v, scaled and placed on the ground."""

    canvas: _Canvas
    label: int
    x: float
    z: float
    turn: float = 0.0
    scale: float = 1.0

    def face(self, points: Points, color: Color, *, solid: bool = False, alpha: int = 255) -> None:
        """A polygon; of a `solid` thing only if the camera sees it counter-clockwise, from outside."""
        cos, sin = self.scale * math.cos(self.turn), self.scale * math.sin(self.turn)
        world = [(self.x + u * cos - w * sin, v * self.scale, self.z + u * sin + w * cos) for u, v, w in points]
        if solid:
            (x0, y0), (x1, y1), (x2, y2) = self.canvas.project(world[:3])
            if (x1 - x0) * (y2 - y1) >= (x2 - x1) * (y1 - y0):
                return
        self.canvas.face(world, color, self.label, alpha=alpha)

    def rect(self, u0: float, v0: float, u1: float, v1: float, color: Color) -> None:
        self.face([(u0, v0, 0), (u1, v0, 0), (u1, v1, 0), (u0, v1, 0)], color)

    def limb(self, u0: float, v0: float, u1: float, v1: float, width: float, color: Color) -> None:
        """A bar with round ends."""
        angle, steps = math.atan2(v1 - v0, u1 - u0), [math.pi * (0.5 + i / 4) for i in range(5)]
        ends = [(u0, v0, angle + a) for a in steps] + [(u1, v1, angle + math.pi + a) for a in steps]
        self.face([(u + width / 2 * math.cos(a), v + width / 2 * math.sin(a), 0) for u, v, a in ends], color)


def _circle(u: float, v: float, r: float, count: int = 14) -> Points:
    return [(u + r * math.cos(a), v + r * math.sin(a), 0) for a in np.arange(count) * (2 * math.pi / count)]


def _shaded(color: Color, factor: float) -> Color:
    return (color[0] * factor, color[1] * factor, color[2] * factor)


def _pick(colors: Sequence[Color], rng: Rng) -> Color:
    r, g, b = np.array(colors[int(rng.integers(len(colors)))]) * rng.uniform(0.75, 1.1) + rng.normal(size=3) * 6
    return float(r), float(g), float(b)


def _paint_sky(canvas: _Canvas, rng: Rng) -> None:
    height, width = canvas.size
    clouds = np.full((height, width), rng.uniform(-0.6, 0.5), np.float32)
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


def _paint_ground(canvas: _Canvas, street: _Street, rng: Rng) -> None:
    def strip(x0: float, x1: float, z0: float, z1: float, color: Color, label: int | None, alpha: int = 255) -> None:
        canvas.face([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], color, label, alpha=alpha)

    left, right = street.kerb[-1], street.kerb[1]
    asphalt = _shaded((1, 1, 1.03), rng.uniform(70, 140))
    slab = _shaded(((1, 1, 1), (1.04, 0.97, 0.86), (1.1, 0.92, 0.84))[rng.integers(3)], rng.uniform(120, 195))
    white: Color = WHITE if rng.random() < 0.8 else MUSTARD
    edges = 1.2 * 1.25 ** np.arange(19)
    for z0, z1 in pairwise(edges):  # in pieces, so that each fades into the haze
        strip(-90, 90, z0, z1, slab, PAVEMENT)
        strip(left, right, z0, z1, asphalt, ROAD)
        for side in (-1, 1):
            kerb = street.kerb[side]
            strip(kerb, kerb + side * 0.25, z0, z1, _shaded(slab, 1.15), PAVEMENT)
            strip(kerb, kerb - side * 0.25, z0, z1, _shaded(asphalt, 0.7), ROAD)
    for z in np.arange(3, 24, 1.1):
        strip(left - 0.25, left - 9, z, z + 0.08, _shaded(slab, 0.7), PAVEMENT)
        strip(right + 0.25, right + 9, z, z + 0.08, _shaded(slab, 0.7), PAVEMENT)
    for _ in range(rng.integers(1, 4)):  # mended asphalt
        x, z = rng.uniform(left + 0.3, right - 1.5), rng.uniform(3, 14)
        strip(x, x + 1.2, z, z * rng.uniform(1.1, 1.4), _shaded(asphalt, rng.uniform(0.85, 1.12)), ROAD)
    for z in np.arange(rng.uniform(1.5, 4.5), 45, 4):
        strip(-0.08, 0.08, z, z + 1.8, white, ROAD)
    if rng.random() < 0.4:  # a crossing
        z = rng.uniform(6, 14)
        for x in np.arange(left + 0.4, right - 0.6, 1.0):
            strip(x, x + 0.5, z, z + 2.6, white, ROAD)
    shade = street.wall[1] if canvas.sun > 0 else street.wall[-1]
    strip(shade, shade - 7 * canvas.sun, 1.2, 60, (20, 24, 44), None, alpha=60)


def _paint_walls(canvas: _Canvas, street: _Street, rng: Rng) -> None:
    """What closes the street, then both sides of it: buildings, here and there a tree."""
    for x in (-25, -13, 0.0, 0.01, 13, 25):
        _paint_building(canvas, x, 60, 61, rng)
    for side in (-1, 1):
        edges = rng.uniform(1.5, 4) + np.cumsum(rng.uniform(6, 11, 6))
        for z0, z1 in reversed(list(pairwise(edges))):
            if rng.random() < 0.8:
                _paint_building(canvas, street.wall[side] + side * rng.uniform(0, 0.6), z0, z1, rng)
            else:
                _paint_tree(canvas, street.wall[side] + side * 2.5, (z0 + z1) / 2, rng)


def _paint_building(canvas: _Canvas, x: float, z0: float, z1: float, rng: Rng) -> None:
    side = 1 if x > 0 else -1
    wall, trim, height = _pick(WALLS, rng), _shaded(_pick(WALLS, rng), 0.8), rng.uniform(4, 11)
    lip = x - 0.2 * side
    for x1, z, lit in ((x + 12 * side, z0, 0.85), (x, z1, 0.92 - 0.2 * side * canvas.sun)):
        canvas.face([(x, 0, z0), (x1, 0, z), (x1, height, z), (x, height, z0)], _shaded(wall, lit), BUILDING)
        _paint_windows(canvas, (x, z0), (x1, z), height, _shaded(wall, lit), rng)
        ends = [(lip, z0), (x1 + lip - x, z)]
        roof = [(u, height + v, w) for v, order in ((-0.25, 1), (0.3, -1)) for u, w in ends[::order]]
        canvas.face(roof, _shaded(trim, lit), BUILDING)


def _paint_windows(
    canvas: _Canvas, near: tuple[float, float], far: tuple[float, float], height: float, wall: Color, rng: Rng
) -> None:
    """Windows and doors on a wall that stands between two points (x, z) of the ground."""
    across, along = far[0] - near[0], far[1] - near[1]
    columns, floors = max(1, round(math.hypot(across, along) / rng.uniform(2.2, 3))), round(height / 3.1)
    wide, tall, frame = rng.uniform(0.24, 0.36), rng.uniform(0.24, 0.34), _shaded(wall, rng.choice((0.7, 1.25)))
    glass = (255, 214, 130) if canvas.zenith[0] < 60 else _shaded(canvas.haze, 0.5)  # lit at dusk
    for floor, column in np.ndindex(floors, columns):
        low = 0.1 if floor == 0 and rng.random() < 0.3 else 0.52 - tall
        for grow, color in ((0.05, frame), (0.0, _shaded(glass, rng.uniform(0.5, 1.1)))):
            s0, s1 = ((column + 0.5 + sign * (wide + grow)) / columns for sign in (-1, 1))
            v0, v1 = ((floor + part) / floors * height for part in (low - grow, 0.52 + tall + grow))
            corners = ((s0, v0), (s1, v0), (s1, v1), (s0, v1))
            canvas.face([(near[0] + s * across, v, near[1] + s * along) for s, v in corners], color, None)


def _furniture(canvas: _Canvas, street: _Street, side: int, rng: Rng) -> Iterable[Thing]:
    """What stands and who walks on one pavement, and the fence behind."""
    kerb, wall = street.kerb[side], street.wall[side]
    near = canvas.nearest(kerb + 0.6 * side)
    kinds = [_paint_lamp, _paint_sign, _paint_bin if rng.random() < 0.4 else _paint_tree]
    for order, kind in enumerate(rng.permutation(3)):
        x, z = kerb + side * rng.uniform(0.4, 0.7), near * (1.12 + 0.4 * order) * rng.uniform(0.95, 1.1)
        street.claim(x, z, 0.3, 0.3)
        yield z, partial(kinds[kind], canvas, x, z, rng)
    for _ in range(rng.integers(1, 4)):
        x = kerb + side * rng.uniform(0.9, abs(wall - kerb) - 0.6)
        z = canvas.nearest(x) * rng.uniform(1.08, 1.4)
        if street.claim(x, z, 0.4, 0.5):
            yield z, partial(_paint_pedestrian, canvas, x, z, rng)
    if rng.random() < 0.8:
        x, height, color, boards = wall - 0.3 * side, rng.uniform(1.5, 2.1), _pick(TIMBER, rng), rng.random() < 0.5
        start = canvas.nearest(x) * rng.uniform(0.75, 1.1)
        for z in start + 1.6 * np.arange(rng.integers(4, 7)):
            yield z + 1, partial(_paint_fence, canvas, x, z, height, color, boards)


def _paint_fence(canvas: _Canvas, x: float, z: float, height: float, color: Color, boards: bool) -> None:
    def bar(z0: float, z1: float, v0: float, v1: float, shade: float, alpha: int = 255) -> None:
        corners = [(x, v0 * height, z0), (x, v0 * height, z1), (x, v1 * height, z1), (x, v1 * height, z0)]
        canvas.face(corners, _shaded(color, shade), FENCE, alpha=alpha)

    bar(z, z + 1.6, 0, 1, 0.3, alpha=190)  # what shows between the bars, dimmed
    for i in range(4):
        if boards:
            bar(z, z + 1.6, (i + 0.15) / 4, (i + 0.75) / 4, 1.0)
        else:
            bar(z + 0.4 * i, z + 0.4 * i + 0.22, 0.04, 0.96, 1.0)
    bar(z, z + 1.6, 0.1, 0.2, 0.8)
    bar(z, z + 1.6, 0.72, 0.84, 0.8)
    bar(z, z + 0.16, 0, 1.08, 0.7)


def _paint_tree(canvas: _Canvas, x: float, z: float, rng: Rng) -> None:
    color, radius, stem, count = _pick(FOLIAGE, rng), rng.uniform(1.2, 1.8), rng.uniform(2.3, 3.2), 70
    canvas.shadow(x, z, radius, radius)
    trunk = _Model(canvas, TREE, x, z)
    for u, width, shade in ((0.0, 0.4, 0.7), (0.08 * canvas.sun, 0.14, 0.95)):
        trunk.limb(u, 0.1, u, stem, width, _shaded(WOOD, shade))
    angle, reach = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.random(count)) * radius * 0.85
    u, v, size = np.cos(angle) * reach, np.sin(angle) * reach, rng.uniform(0.18, 0.32, count) * radius
    light = (u * canvas.sun + v) / radius * 0.28 + rng.normal(size=count) * 0.16 + 0.85
    for i in np.argsort(light):
        at = (x + float(u[i]), stem + radius * 0.7 + float(v[i]), z)
        canvas.blob(at, float(size[i]), _shaded(color, max(0.3, float(light[i]))), TREE)


def _paint_post(canvas: _Canvas, x: float, z: float, height: float, width: float, color: Color) -> _Model:
    canvas.shadow(x, z, 0.35, 0.35)
    post = _Model(canvas, POLE, x, z)
    post.rect(-width / 2, 0, width / 2, height, color)
    post.rect(-width * 0.2, 0, width * 0.1, height, _shaded(color, 1.3))
    post.rect(-width * 0.75, 0, width * 0.75, 0.5, _shaded(color, 0.8))
    return post


def _paint_lamp(canvas: _Canvas, x: float, z: float, rng: Rng) -> None:
    color, height, reach = _pick(METAL, rng), rng.uniform(4, 5.5), -math.copysign(rng.uniform(0.9, 1.5), x)
    lamp = _paint_post(canvas, x, z, height, 0.3, color)
    lamp.limb(0, height, reach, height + 0.25, 0.24, color)
    lamp.limb(reach * 0.6, height + 0.2, reach * 1.2, height + 0.25, 0.32, _shaded(color, 0.8))


def _paint_sign(canvas: _Canvas, x: float, z: float, rng: Rng) -> None:
    height, r, color, ink = rng.uniform(2.3, 2.9), rng.uniform(0.45, 0.6), _pick(BOARDS, rng), _pick(METAL, rng)
    _paint_post(canvas, x, z, height, 0.25, _pick((STONE, COAL), rng))
    board, kind = _Model(canvas, SIGN, x, z), rng.integers(4)
    if kind < 2:  # round, or a triangle
        for size, fill in ((1.0 + 0.25 * kind, color), (0.76, WHITE)):
            turned = [(v, u, w) for u, v, w in _circle(0, 0, r * size, 3 if kind else 14)]
            board.face([(u, height + v, w) for u, v, w in turned], fill)
        board.rect(-0.4 * r, height - 0.13 * r, 0.4 * r, height + 0.13 * r, ink)
    elif kind == 2:  # directions
        for size, fill in ((1.0, WHITE), (0.88, color)):
            board.rect(-1.3 * r * size, height - 0.8 * r * size, 1.3 * r * size, height + 0.8 * r * size, fill)
        for v in (-0.4, 0.1):
            board.rect(-0.9 * r, height + v * r, rng.uniform(0.1, 0.9) * r, height + (v + 0.25) * r, WHITE)
    else:  # a traffic light
        board.rect(-0.62 * r, height - 1.3 * r, 0.62 * r, height + 1.5 * r, COAL)
        on = rng.integers(3)
        for i, fill in enumerate(((80, 220, 120), (250, 190, 60), (240, 70, 60))):
            lamp = _circle(0, height + (i - 0.9) * 0.85 * r, 0.36 * r)
            board.face(lamp, _shaded(fill, 1.0 if i == on else 0.35))


def _paint_bin(canvas: _Canvas, x: float, z: float, rng: Rng) -> None:
    box, color = _Model(canvas, IGNORE, x, z), _pick(METAL, rng)
    canvas.shadow(x, z, 0.5, 0.4)
    box.rect(-0.3, 0, 0.3, 0.95, color)
    box.rect(0, 0, 0.3 * canvas.sun, 0.95, _shaded(color, 1.15))
    box.rect(-0.36, 0.9, 0.36, 1.08, _shaded(color, 0.6))


def _paint_pedestrian(canvas: _Canvas, x: float, z: float, rng: Rng) -> None:
    body = _Model(canvas, PEDESTRIAN, x, z, scale=rng.uniform(1.0, 1.2))
    coat, legs, skin, hair = (_pick(colors, rng) for colors in (CLOTHES, CLOTHES, SKIN, METAL))
    stride, swing, hem = rng.uniform(0.1, 0.3), rng.uniform(0.05, 0.25), rng.choice((0.5, 0.8))
    canvas.shadow(x, z, 0.45, 0.3)
    for way in (-1, 1):
        body.limb(0.09 * way, 0.85, stride * way, 0.08, 0.25, _shaded(legs, 0.65 + 0.08 * way))
        body.limb(stride * way, 0.05, stride * way + 0.1, 0.05, 0.12, COAL)
        body.limb(0.2 * way, 1.36, (0.22 + swing) * way, 0.85, 0.16, _shaded(coat, 0.82))
    for u0, u1, shade in ((-0.27, 0.27, 1.0), (0, 0.27 * canvas.sun, 1.15)):
        torso = [(u0, hem, 0), (u1, hem, 0), (u1, 1.42, 0), (0, 1.52, 0), (u0, 1.42, 0)]
        body.face(torso, _shaded(coat, shade))
    body.face(_circle(0, 1.68, 0.18), _shaded(hair, 0.5))
    body.face(_circle(0.03, 1.64, 0.14), skin)


def _traffic(canvas: _Canvas, street: _Street, rng: Rng) -> Iterable[Thing]:
    """Parked and driving cars, bicyclists, somebody who crosses."""
    left, right = street.kerb[-1], street.kerb[1]
    for side in (-1, 1):
        x = street.kerb[side] - 1.0 * side
        z = canvas.nearest(x) * rng.uniform(1.2, 2.0) + 4
        for _ in range(rng.integers(1, 4) if rng.random() < 0.45 else 0):
            if street.claim(x, z, 1.0, 2.6):
                yield z, partial(_paint_car, canvas, x, z, (0 if side > 0 else math.pi) + rng.normal() * 0.03, rng)
            z += rng.uniform(5.2, 8)
    for _ in range(rng.integers(1, 3)):
        x, z, turn = (
            rng.uniform(-0.8, 0.8),
            rng.uniform(9, 22),
            rng.choice((0, 2, 1, -1)) * math.pi / 2 + rng.normal() * 0.1,
        )
        across = abs(math.sin(turn))
        if street.claim(x, z, 0.9 + 1.5 * across, 2.6 - 1.5 * across):
            yield z, partial(_paint_car, canvas, x, z, turn, rng)
    for kind in [_paint_bicyclist] * rng.integers(1, 3) + [_paint_pedestrian] * rng.integers(0, 3):
        for _ in range(4):  # tries to find room
            x = rng.uniform(left + 0.5, right - 0.5)
            z = max(5.0, canvas.nearest(x) * 1.2) * rng.uniform(1.0, 1.5)
            if street.claim(x, z, 0.6, 0.6):
                yield z, partial(kind, canvas, x, z, rng)
                break


def _frustum(low: Sequence[float], high: Sequence[float]) -> Sequence[Points]:
    """Rear, right, front, left and top of a solid between two rectangles (half width, rear, front, height)."""
    bottom, top = ([(-a, y, b), (a, y, b), (a, y, c), (-a, y, c)] for a, b, c, y in (low, high))
    return [[bottom[i], bottom[(i + 1) % 4], top[(i + 1) % 4], top[i]] for i in range(4)] + [top]


def _paint_car(canvas: _Canvas, x: float, z: float, turn: float, rng: Rng) -> None:
    """Seen from behind at turn 0. The cabin comes last: the camera is above the belt line."""
    car, paint, side_on = _Model(canvas, CAR, x, z, turn, rng.uniform(0.95, 1.1)), _pick(CARS, rng), abs(math.sin(turn))
    shades = [0.88 + 0.14 * canvas.sun * math.sin(turn + i * math.pi / 2) for i in range(4)] + [1.12]
    rear, front, height = ((-1.9, 0.9, 1.5), (-2.05, 0.8, 1.5), (-2.05, 1.5, 2.0))[rng.integers(3)]
    cabin = _frustum((0.84, rear, front, 0.92), (0.68, rear + 0.3, front - 0.6, height))
    canvas.shadow(x, z, 1.6 + 0.8 * side_on, 2.3 - 0.8 * side_on)
    for face, shade in zip(_frustum((0.88, -2.1, 2.1, 0.28), (0.86, -2.1, 2.1, 0.92)), shades, strict=True):
        car.face(face, _shaded(paint, shade), solid=True)
    for u, w, (r, fill) in (
        (u, w, tyre) for tyre in ((0.36, COAL), (0.2, STONE)) for u in (-0.89, 0.89) for w in (-1.3, 1.3)
    ):
        car.face([(u, 0.36 + v, w + math.copysign(s, u * s)) for s, v, _ in _circle(0, 0, r)], fill, solid=True)
    for w, fill in ((-2.11, RED), (2.11, CREAM)):
        for u, v, half, color in ((-0.65, 0.76, 0.16, fill), (0.65, 0.76, 0.16, fill), (0.0, 0.52, 0.28, WHITE)):
            a, b = (u + math.copysign(half, w), u - math.copysign(half, w))
            car.face([(a, v - 0.08, w), (b, v - 0.08, w), (b, v + 0.08, w), (a, v + 0.08, w)], color, solid=True)
    for face, shade in zip(cabin, shades, strict=True):
        car.face(face, _shaded(paint, shade), solid=True)
        if face is not cabin[4]:
            middle = np.mean(face, axis=0)
            pane = [tuple(corner) for corner in (middle + 0.8 * (np.array(face) - middle)).tolist()]
            car.face(pane, _shaded(canvas.haze, 0.42 * shade), solid=True)


def _paint_bicyclist(canvas: _Canvas, x: float, z: float, rng: Rng) -> None:
    turn = rng.choice((0.0, math.pi)) + rng.uniform(-0.8, 0.8)
    bike = _Model(canvas, BICYCLIST, x, z, turn, rng.uniform(1.05, 1.2))
    frame, coat, legs, skin, helmet = (_pick(colors, rng) for colors in (BOARDS, JERSEYS, CLOTHES, SKIN, JERSEYS))
    canvas.shadow(x, z, 0.9, 0.4)
    bike.limb(0.02, 0.95, 0.12, 0.4, 0.18, _shaded(legs, 0.55))
    for u in (-0.55, 0.55):
        bike.face(_circle(u, 0.38, 0.38), (30, 30, 34), alpha=110)
        rim = [(inner, outer) for inner, outer in zip(_circle(u, 0.38, 0.29), _circle(u, 0.38, 0.38), strict=True)]
        for (a, b), (c, d) in zip(rim, rim[1:] + rim[:1], strict=True):
            bike.face([a, b, d, c], (30, 30, 34))
    for bar in (
        (-0.55, 0.38, -0.1, 0.36),
        (-0.1, 0.36, 0.4, 0.8),
        (-0.1, 0.36, -0.2, 0.9),
        (-0.2, 0.8, 0.42, 0.8),
        (0.55, 0.38, 0.4, 1.05),
    ):
        bike.limb(*bar, 0.1, frame)
    bike.limb(-0.18, 0.98, 0.2, 0.72, 0.2, _shaded(legs, 0.75))
    bike.limb(0.2, 0.72, -0.02, 0.3, 0.18, _shaded(legs, 0.75))
    bike.face([(-0.38, 0.92, 0), (0.04, 0.9, 0), (0.38, 1.36, 0), (0.22, 1.58, 0), (0.0, 1.54, 0)], coat)
    bike.limb(0.2, 1.42, 0.42, 1.06, 0.15, _shaded(coat, 0.8))
    bike.face(_circle(0.34, 1.7, 0.16), skin)
    bike.face([(0.14, 1.72, 0), (0.54, 1.76, 0), (0.46, 1.9, 0), (0.3, 1.94, 0), (0.16, 1.86, 0)], helmet)


def _develop(canvas: _Canvas, rng: Rng) -> tuple[Array, Array]:
    """Averages the painting down, and adds what materials, lens and sensor add."""
    mask = np.ascontiguousarray(np.asarray(canvas.mask)[1::SUPERSAMPLING, 1::SUPERSAMPLING])
    pixels = np.asarray(canvas.image.reduce(SUPERSAMPLING), np.float32)
    strength = np.full(256, 1.0, np.float32)
    strength[list(GRAIN)] = list(GRAIN.values())
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in canvas.size)
    light = rng.uniform(0.9, 1.15) * (1 + rng.uniform(-0.06, 0.06) * np.array([1, 0, -1]))
    gain: npt.NDArray[np.float32] = np.float32(1) - np.float32(0.12) * (y[:, None] ** 2 + x**2)
    pixels += (strength[mask] * rng.standard_normal(canvas.size, np.float32))[..., None]
    pixels *= gain[..., None] * light.astype(np.float32)
    pixels += rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0.5, 3))
    return pixels.clip(0, 255).astype(np.uint8), mask
