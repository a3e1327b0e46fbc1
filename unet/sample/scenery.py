"""What stands and moves in a generated scene, each thing painted by one function: buildings, street furniture, traffic.

A thing is placed by `x` and `z`, in metres to the right and ahead; `rng` draws its shape and colours. It is painted at
once, over what is there: the caller goes from far to near.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.random import Generator

from unet.data.labels import IGNORE
from unet.sample.canvas import Body, Canvas, Points, circle
from unet.sample.palette import (
    BICYCLIST,
    BOARDS,
    BUILDING,
    CAR,
    CARS,
    CLOTHES,
    COAL,
    CREAM,
    FENCE,
    FOLIAGE,
    JERSEYS,
    METAL,
    PEDESTRIAN,
    POLE,
    RED,
    SIGN,
    SKIN,
    STONE,
    TREE,
    WALLS,
    WHITE,
    WOOD,
    Color,
    pick,
    shaded,
)


def paint_building(canvas: Canvas, x: float, z0: float, z1: float, rng: Generator) -> None:
    """A house between `z0` and `z1` whose wall along the street is at `x`; it reaches away from the street."""
    side = 1 if x > 0 else -1
    wall, trim, height = pick(WALLS, rng), shaded(pick(WALLS, rng), 0.8), rng.uniform(4, 11)
    lip = x - 0.2 * side
    for x1, z, lit in ((x + 12 * side, z0, 0.85), (x, z1, 0.92 - 0.2 * side * canvas.sun)):
        canvas.face([(x, 0, z0), (x1, 0, z), (x1, height, z), (x, height, z0)], shaded(wall, lit), BUILDING)
        _paint_windows(canvas, (x, z0), (x1, z), height, shaded(wall, lit), rng)
        ends = [(lip, z0), (x1 + lip - x, z)]
        roof = [(u, height + v, w) for v, order in ((-0.25, 1), (0.3, -1)) for u, w in ends[::order]]
        canvas.face(roof, shaded(trim, lit), BUILDING)


def _paint_windows(
    canvas: Canvas, near: tuple[float, float], far: tuple[float, float], height: float, wall: Color, rng: Generator
) -> None:
    """Windows and doors on a wall that stands between two points (x, z) of the ground."""
    across, along = far[0] - near[0], far[1] - near[1]
    columns, floors = max(1, round(math.hypot(across, along) / rng.uniform(2.2, 3))), round(height / 3.1)
    wide, tall, frame = rng.uniform(0.24, 0.36), rng.uniform(0.24, 0.34), shaded(wall, rng.choice((0.7, 1.25)))
    glass = (255, 214, 130) if canvas.zenith[0] < 60 else shaded(canvas.haze, 0.5)  # lit at dusk
    for floor, column in np.ndindex(floors, columns):
        low = 0.1 if floor == 0 and rng.random() < 0.3 else 0.52 - tall
        for grow, color in ((0.05, frame), (0.0, shaded(glass, rng.uniform(0.5, 1.1)))):
            s0, s1 = ((column + 0.5 + sign * (wide + grow)) / columns for sign in (-1, 1))
            v0, v1 = ((floor + part) / floors * height for part in (low - grow, 0.52 + tall + grow))
            corners = ((s0, v0), (s1, v0), (s1, v1), (s0, v1))
            canvas.face([(near[0] + s * across, v, near[1] + s * along) for s, v in corners], color, None)


def paint_fence(canvas: Canvas, x: float, z: float, height: float, color: Color, boards: bool) -> None:
    """A length of 1.6 m along the street from `z` on, of horizontal `boards` or of upright bars."""

    def bar(z0: float, z1: float, v0: float, v1: float, shade: float, alpha: int = 255) -> None:
        corners = [(x, v0 * height, z0), (x, v0 * height, z1), (x, v1 * height, z1), (x, v1 * height, z0)]
        canvas.face(corners, shaded(color, shade), FENCE, alpha=alpha)

    bar(z, z + 1.6, 0, 1, 0.25, alpha=225)  # what shows between the bars, dimmed
    for i in range(3):
        if boards:
            bar(z, z + 1.6, (i + 0.2) / 3, (i + 0.8) / 3, 1.0)
        else:
            bar(z + 0.53 * i, z + 0.53 * i + 0.3, 0.04, 0.96, 1.0)
    bar(z, z + 1.6, 0.1, 0.2, 0.8)
    bar(z, z + 1.6, 0.72, 0.84, 0.8)
    bar(z, z + 0.16, 0, 1.08, 0.7)


def paint_tree(canvas: Canvas, x: float, z: float, rng: Generator) -> None:
    """A trunk, and a crown of leaves that are brighter towards the sun."""
    color, radius, stem, count = pick(FOLIAGE, rng), rng.uniform(1.2, 1.8), rng.uniform(2.3, 3.2), 70
    canvas.shadow(x, z, radius, radius)
    trunk = Body(canvas, TREE, x, z)
    for u, width, shade in ((0.0, 0.4, 0.7), (0.08 * canvas.sun, 0.14, 0.95)):
        trunk.limb(u, 0.1, u, stem, width, shaded(WOOD, shade))
    angle, reach = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.random(count)) * radius * 0.85
    u, v, size = np.cos(angle) * reach, np.sin(angle) * reach, rng.uniform(0.18, 0.32, count) * radius
    light = (u * canvas.sun + v) / radius * 0.28 + rng.normal(size=count) * 0.16 + 0.85
    for i in np.argsort(light):
        at = (x + float(u[i]), stem + radius * 0.7 + float(v[i]), z)
        canvas.blob(at, float(size[i]), shaded(color, max(0.3, float(light[i]))), TREE)


def paint_lamp(canvas: Canvas, x: float, z: float, rng: Generator) -> None:
    """A street lamp that reaches over the road."""
    color, height, reach = pick(METAL, rng), rng.uniform(4, 5.5), -math.copysign(rng.uniform(0.9, 1.5), x)
    lamp = _paint_post(canvas, x, z, height, 0.34, color)
    lamp.limb(0, height, reach, height + 0.25, 0.28, color)
    lamp.limb(reach * 0.6, height + 0.2, reach * 1.2, height + 0.25, 0.32, shaded(color, 0.8))


def paint_sign(canvas: Canvas, x: float, z: float, rng: Generator) -> None:
    """A post with a round or triangular sign, directions, or a traffic light."""
    height, r, color, ink = rng.uniform(2.3, 2.9), rng.uniform(0.45, 0.6), pick(BOARDS, rng), pick(METAL, rng)
    _paint_post(canvas, x, z, height, 0.28, pick((STONE, COAL), rng))
    board, kind = Body(canvas, SIGN, x, z), rng.integers(4)
    if kind < 2:  # round, or a triangle
        for size, fill in ((1.0 + 0.25 * kind, color), (0.76, WHITE)):
            turned = [(v, u, w) for u, v, w in circle(0, 0, r * size, 3 if kind else 14)]
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
            lamp = circle(0, height + (i - 0.9) * 0.85 * r, 0.36 * r)
            board.face(lamp, shaded(fill, 1.0 if i == on else 0.35))


def _paint_post(canvas: Canvas, x: float, z: float, height: float, width: float, color: Color) -> Body:
    canvas.shadow(x, z, 0.35, 0.35)
    post = Body(canvas, POLE, x, z)
    post.rect(-width / 2, 0, width / 2, height, color)
    post.rect(-width * 0.2, 0, width * 0.1, height, shaded(color, 1.3))
    post.rect(-width * 0.75, 0, width * 0.75, 0.5, shaded(color, 0.8))
    return post


def paint_bin(canvas: Canvas, x: float, z: float, rng: Generator) -> None:
    """A litter bin, which is of no class: void in the mask."""
    box, color = Body(canvas, IGNORE, x, z), pick(METAL, rng)
    canvas.shadow(x, z, 0.5, 0.4)
    box.rect(-0.3, 0, 0.3, 0.95, color)
    box.rect(0, 0, 0.3 * canvas.sun, 0.95, shaded(color, 1.15))
    box.rect(-0.36, 0.9, 0.36, 1.08, shaded(color, 0.6))


def paint_pedestrian(canvas: Canvas, x: float, z: float, rng: Generator) -> None:
    """Somebody who walks, seen from the side."""
    body = Body(canvas, PEDESTRIAN, x, z, scale=rng.uniform(1.05, 1.25))
    coat, legs, skin, hair = (pick(colors, rng) for colors in (CLOTHES, CLOTHES, SKIN, METAL))
    stride, swing, hem = rng.uniform(0.1, 0.3), rng.uniform(0.05, 0.25), rng.choice((0.5, 0.8))
    canvas.shadow(x, z, 0.45, 0.3)
    for way in (-1, 1):
        body.limb(0.09 * way, 0.85, stride * way, 0.08, 0.25, shaded(legs, 0.65 + 0.08 * way))
        body.limb(stride * way, 0.05, stride * way + 0.1, 0.05, 0.12, COAL)
        body.limb(0.2 * way, 1.36, (0.22 + swing) * way, 0.85, 0.16, shaded(coat, 0.82))
    for u0, u1, shade in ((-0.27, 0.27, 1.0), (0, 0.27 * canvas.sun, 1.15)):
        torso = [(u0, hem, 0), (u1, hem, 0), (u1, 1.42, 0), (0, 1.52, 0), (u0, 1.42, 0)]
        body.face(torso, shaded(coat, shade))
    body.face(circle(0, 1.68, 0.18), shaded(hair, 0.5))
    body.face(circle(0.03, 1.64, 0.14), skin)


def paint_bicyclist(canvas: Canvas, x: float, z: float, rng: Generator) -> None:
    """Somebody on a bicycle, which is of the same class."""
    turn = rng.choice((0.0, math.pi)) + rng.uniform(-0.8, 0.8)
    bike = Body(canvas, BICYCLIST, x, z, turn, rng.uniform(1.05, 1.2))
    frame, coat, legs, skin, helmet = (pick(colors, rng) for colors in (BOARDS, JERSEYS, CLOTHES, SKIN, JERSEYS))
    canvas.shadow(x, z, 0.9, 0.4)
    bike.limb(0.02, 0.95, 0.12, 0.4, 0.18, shaded(legs, 0.55))
    for u in (-0.55, 0.55):
        bike.face(circle(u, 0.38, 0.38), (30, 30, 34), alpha=110)
        rim = list(zip(circle(u, 0.38, 0.29), circle(u, 0.38, 0.38), strict=True))
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
    bike.limb(-0.18, 0.98, 0.2, 0.72, 0.2, shaded(legs, 0.75))
    bike.limb(0.2, 0.72, -0.02, 0.3, 0.18, shaded(legs, 0.75))
    bike.face([(-0.38, 0.92, 0), (0.04, 0.9, 0), (0.38, 1.36, 0), (0.22, 1.58, 0), (0.0, 1.54, 0)], coat)
    bike.limb(0.2, 1.42, 0.42, 1.06, 0.15, shaded(coat, 0.8))
    bike.face(circle(0.34, 1.7, 0.16), skin)
    bike.face([(0.14, 1.72, 0), (0.54, 1.76, 0), (0.46, 1.9, 0), (0.3, 1.94, 0), (0.16, 1.86, 0)], helmet)


def paint_car(canvas: Canvas, x: float, z: float, turn: float, rng: Generator) -> None:
    """A car, seen from behind at `turn` 0. The cabin comes last: the camera is above the belt line."""
    car, paint, side_on = Body(canvas, CAR, x, z, turn, rng.uniform(0.95, 1.1)), pick(CARS, rng), abs(math.sin(turn))
    shades = [0.88 + 0.14 * canvas.sun * math.sin(turn + i * math.pi / 2) for i in range(4)] + [1.12]
    rear, front, height = ((-1.9, 0.9, 1.5), (-2.05, 0.8, 1.5), (-2.05, 1.5, 2.0))[rng.integers(3)]
    cabin = _frustum((0.84, rear, front, 0.92), (0.68, rear + 0.3, front - 0.6, height))
    canvas.shadow(x, z, 1.6 + 0.8 * side_on, 2.3 - 0.8 * side_on)
    for face, shade in zip(_frustum((0.88, -2.1, 2.1, 0.28), (0.86, -2.1, 2.1, 0.92)), shades, strict=True):
        car.face(face, shaded(paint, shade), solid=True)
    for (r, fill), u, w in product(((0.36, COAL), (0.2, STONE)), (-0.89, 0.89), (-1.3, 1.3)):
        car.face([(u, 0.36 + v, w + math.copysign(s, u * s)) for s, v, _ in circle(0, 0, r)], fill, solid=True)
    for w, fill in ((-2.11, RED), (2.11, CREAM)):
        for u, v, half, color in ((-0.65, 0.76, 0.16, fill), (0.65, 0.76, 0.16, fill), (0.0, 0.52, 0.28, WHITE)):
            a, b = (u + math.copysign(half, w), u - math.copysign(half, w))
            car.face([(a, v - 0.08, w), (b, v - 0.08, w), (b, v + 0.08, w), (a, v + 0.08, w)], color, solid=True)
    for face, shade in zip(cabin, shades, strict=True):
        car.face(face, shaded(paint, shade), solid=True)
        if face is not cabin[4]:
            middle = np.mean(face, axis=0)
            pane = [tuple(corner) for corner in (middle + 0.8 * (np.array(face) - middle)).tolist()]
            car.face(pane, shaded(canvas.haze, 0.42 * shade), solid=True)


def _frustum(low: Sequence[float], high: Sequence[float]) -> Sequence[Points]:
    """Rear, right, front, left and top of a solid between two rectangles (half width, rear, front, height)."""
    bottom, top = ([(-a, y, b), (a, y, b), (a, y, c), (-a, y, c)] for a, b, c, y in (low, high))
    return [[bottom[i], bottom[(i + 1) % 4], top[(i + 1) % 4], top[i]] for i in range(4)] + [top]
