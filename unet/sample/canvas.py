"""The canvas of a generated scene: an image and its mask, a camera and the light of the day.

The world is in metres: x to the right, y up, z ahead, (0, 0, 0) on the road below the camera. What is painted covers
what was painted before, in the image and, where it has a class, in the mask. All is painted as shapes upon quads:

    quad     [4, 3] float: its corners in the world, counter-clockwise for who sees it
    shapes   [n, corners] complex: s + ti lies s of the way along the quad's first side and t of the way along its last;
             on a quad of 1 m by 1 m these are metres
"""

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image, ImageDraw

Floats = npt.NDArray[np.float64]
Shapes = npt.NDArray[np.complex128]

SIZE = (192, 256)  # height and width of a scene in pixels
SUPERSAMPLING = 2  # scenes are painted this many times larger, then averaged: smooth edges
GROUND = np.array([(0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)], np.float64)  # a quad: x + zi is a point of the ground

SKIES = (
    ((74, 134, 204), (192, 216, 234), (1.04, 1.0, 0.95)),  # clear
    ((116, 124, 136), (168, 172, 176), (0.78, 0.80, 0.85)),  # about to rain
    ((98, 126, 178), (248, 204, 156), (1.08, 0.92, 0.74)),  # golden hour
    ((52, 60, 104), (206, 146, 138), (0.74, 0.68, 0.80)),  # dusk
)
"""Colour overhead, colour at the horizon, colour of the light."""


class Canvas:
    """Image and mask being painted, the camera, the light."""

    def __init__(self, rng: Generator) -> None:
        height, self.width = (side * SUPERSAMPLING for side in SIZE)
        self.focal, self.eye = self.width * rng.uniform(0.8, 0.95), rng.uniform(1.9, 2.6)
        self.centre, self.horizon = self.width * rng.uniform(0.4, 0.6), height * rng.uniform(0.4, 0.5)
        self.zenith, self.haze, self.light = np.array(SKIES[rng.integers(len(SKIES))])
        self.fog = rng.uniform(0.004, 0.016)  # density per metre
        self.sun = rng.choice((-1, 1)) * rng.uniform(0.3, 1.0)  # from where it shines: -1 left, 1 right
        self.image, self.mask = (Image.new(mode, (self.width, height)) for mode in ("RGB", "L"))
        self._colors, self._classes = ImageDraw.Draw(self.image, "RGBA"), ImageDraw.Draw(self.mask)

    def nearest(self, x: float) -> float:
        """Return the distance [m] from which on a point at `x` is in the picture."""
        return self.focal * abs(x) / (self.centre if x < 0 else self.width - self.centre)

    def paint(self, quad: Floats, shapes: Shapes, color: Floats, label: int | None = None, alpha: int = 255) -> None:
        """Paint shapes on a quad in one colour, or in one each. Without a label the mask stays as it is."""
        s, t = shapes.real, shapes.imag
        x, y, z = np.moveaxis(np.stack([(1 - s) * (1 - t), s * (1 - t), s * t, (1 - s) * t], -1) @ quad, -1, 0)
        corners = np.stack([self.centre + x * self.focal / z, self.horizon + (self.eye - y) * self.focal / z], -1)
        tones = self.haze + np.exp(-self.fog * z[:, :1]) * (color * self.light - self.haze)
        for polygon, tone in zip(corners.reshape(-1, 2 * shapes.shape[1]), tones.clip(0, 255).astype(int), strict=True):
            self._colors.polygon(polygon.tolist(), (*tone.tolist(), alpha))
            if label is not None:
                self._classes.polygon(polygon.tolist(), label)

    def brightness(self, quad: Floats) -> float:
        """Return how much light falls on a face of a solid, 0 if the camera does not see it."""
        normal = np.cross(quad[3] - quad[0], quad[1] - quad[0])
        hidden = normal @ (quad[0] - (0, self.eye, 0)) >= 0
        return 0 if hidden else 0.88 + float(normal @ (0.14 * self.sun, 0.22, 0) / np.linalg.norm(normal))


def stand(points: Floats, x: float, z: float, turn: float) -> Floats:
    """Return points turned about the vertical, counter-clockwise from above, then moved to (x, z)."""
    u, v, w = np.moveaxis(points, -1, 0)
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack([x + u * cos - w * sin, v, z + u * sin + w * cos], -1)


def solid(low: tuple[float, ...], high: tuple[float, ...]) -> Floats:
    """Return rear, right, front, left and top of a solid between rectangles: half their width, rear, front, height."""
    ends = [[(-a, y, b), (a, y, b), (a, y, c), (-a, y, c)] for a, b, c, y in (low, high)]
    faces = [(0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7), (4, 5, 6, 7)]
    return np.array(ends, np.float64).reshape(8, 3)[faces]


def box(s0: float | Floats, t0: float | Floats, s1: float | Floats, t1: float | Floats) -> Shapes:
    """Return rectangles between two corners."""
    return np.atleast_2d(np.stack([s0 + 1j * t0, s1 + 1j * t0, s1 + 1j * t1, s0 + 1j * t1], -1))


def disc(centre: complex | Shapes, radius: float | Floats, corners: int = 14) -> Shapes:
    """Return circles, or regular polygons with a corner on top."""
    circle = 1j * np.exp(2j * np.pi * np.arange(corners) / corners)
    return np.atleast_2d(np.asarray(centre)[..., None] + np.asarray(radius)[..., None] * circle)


def bar(width: float, *points: complex) -> Shapes:
    """Return bars with round ends from each point to the next."""
    start, end = np.array(points[:-1])[:, None], np.array(points[1:])[:, None]
    cap = (end - start) / abs(end - start) * width / 2 * np.exp(1j * np.linspace(-np.pi / 2, np.pi / 2, 5))
    return np.concatenate([end + cap, start - cap], -1)


def grid(columns: int, rows: int, shape: Shapes) -> Shapes:
    """Return a shape repeated in each cell of a quad."""
    cells = (np.arange(columns) + 1j * np.arange(rows)[:, None]).reshape(-1, 1) + shape
    return cells.real / columns + 1j * cells.imag / rows
