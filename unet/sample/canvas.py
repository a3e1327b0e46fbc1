"""The canvas of a generated scene: an image and its mask, a camera and the light of the day.

The world is in metres: x to the right, y up, z ahead, (0, 0, 0) on the road below the camera. What is painted covers
what was painted before. Every polygon goes to the image and, as its class, to the mask, so that the two agree; only
details of a thing, without a class of their own, go to the image alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from unet.sample.palette import Color

Points = Sequence[tuple[float, float, float]]
"""Corners of a polygon, in metres: (x, y, z) in the world, (u, v, w) in a thing's own coordinates."""

SIZE = (192, 256)
"""Height and width of a scene in pixels."""

SUPERSAMPLING = 2
"""Scenes are painted this many times larger, then averaged: smooth edges."""

# fmt: off
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


class Canvas:
    """Image and mask being painted, the camera, the light."""

    def __init__(self, rng: Generator) -> None:
        height, self.width = (side * SUPERSAMPLING for side in SIZE)
        self.focal = self.width * rng.uniform(0.8, 0.95)
        self.centre, self.horizon = self.width * rng.uniform(0.4, 0.6), height * rng.uniform(0.40, 0.5)
        self.eye = rng.uniform(1.9, 2.6)  # metres above the road
        self.zenith, self.haze, self.tint, fog = SKIES[rng.integers(len(SKIES))]
        self.fog = fog * rng.uniform(0.6, 1.4)
        self.sun = rng.choice((-1, 1)) * rng.uniform(0.3, 1.0)  # from where it shines: -1 left, 1 right
        self.image, self.mask = (Image.new(mode, (self.width, height)) for mode in ("RGB", "L"))
        self._colors, self._classes = ImageDraw.Draw(self.image, "RGBA"), ImageDraw.Draw(self.mask)

    def project(self, points: Points) -> list[tuple[float, float]]:
        """World points to pixels."""
        scaled = ((x, self.eye - y, self.focal / z) for x, y, z in points)
        return [(self.centre + x * scale, self.horizon + y * scale) for x, y, scale in scaled]

    def nearest(self, x: float) -> float:
        """The distance [m] from which on a point at `x` is in the picture."""
        return self.focal * abs(x) / (self.centre if x < 0 else self.width - self.centre)

    def _tone(self, color: Color, z: float, alpha: int = 255) -> tuple[int, ...]:
        """`color` in this light, through `z` metres of haze."""
        clear = math.exp(-self.fog * z)
        (r, g, b), (s, t, u), (h, i, j) = color, self.tint, self.haze
        lit = (clear * (r * s - h) + h, clear * (g * t - i) + i, clear * (b * u - j) + j)
        return min(int(lit[0]), 255), min(int(lit[1]), 255), min(int(lit[2]), 255), alpha

    def face(self, points: Points, color: Color, label: int | None, *, alpha: int = 255) -> None:
        """A polygon. Without a label it is a detail of what is there, and the mask stays."""
        corners = self.project(points)
        self._colors.polygon(corners, self._tone(color, points[0][2], alpha))
        if label is not None:
            self._classes.polygon(corners, label)

    def blob(self, centre: tuple[float, float, float], radius: float, color: Color, label: int) -> None:
        """A ball of `radius` metres."""
        (x, y), r = self.project([centre])[0], radius * self.focal / centre[2]
        self._colors.ellipse((x - r, y - r, x + r, y + r), self._tone(color, centre[2]))
        self._classes.ellipse((x - r, y - r, x + r, y + r), label)

    def shadow(self, x: float, z: float, across: float, along: float) -> None:
        """The soft dark patch under a thing."""
        for size, alpha in ((1.0, 36), (0.75, 44)):
            patch = [(x + u * across, 0, z + v * along) for u, v, _ in circle(-0.4 * self.sun, 0, size)]
            self.face(patch, (14, 16, 26), None, alpha=alpha)


@dataclass(frozen=True)
class Body:
    """A thing in its own coordinates (u right, v up, w ahead [m]), turned about v, scaled and placed on the ground."""

    canvas: Canvas
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
        """A rectangle between two corners, upright and facing the camera at turn 0."""
        self.face([(u0, v0, 0), (u1, v0, 0), (u1, v1, 0), (u0, v1, 0)], color)

    def limb(self, u0: float, v0: float, u1: float, v1: float, width: float, color: Color) -> None:
        """A bar with round ends."""
        angle, steps = math.atan2(v1 - v0, u1 - u0), [math.pi * (0.5 + i / 4) for i in range(5)]
        ends = [(u0, v0, angle + a) for a in steps] + [(u1, v1, angle + math.pi + a) for a in steps]
        self.face([(u + width / 2 * math.cos(a), v + width / 2 * math.sin(a), 0) for u, v, a in ends], color)


def circle(u: float, v: float, r: float, count: int = 14) -> Points:
    """A circle of `count` corners about (u, v), upright and facing the camera."""
    return [(u + r * math.cos(a), v + r * math.sin(a), 0) for a in np.arange(count) * (2 * math.pi / count)]
