"""A generated street scene: sky, ground and walls, then what stands and moves between them, from far to near.

image: HWC uint8 RGB, mask: HW uint8 of CamVid class indices, `IGNORE` where void. A scene depends on its seed alone.
Classes share colours and the light changes with every scene: shape, texture and context tell what a pixel is.
"""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from PIL import Image

from unet.data.image import Array
from unet.sample.canvas import GROUND, SIZE, SUPERSAMPLING, Canvas, box, disc
from unet.sample.things import BUILDING, PAVEMENT, ROAD, TREE, paint_thing, pick


def draw_scene(seed: int) -> tuple[Array, Array]:
    """Return image and mask of scene number `seed`; raise ValueError if it is negative."""
    rng = np.random.default_rng(seed)
    canvas, left, right = Canvas(rng), -rng.uniform(1.9, 2.8), rng.uniform(1.9, 2.8)
    _paint_sky(canvas, rng)
    _paint_ground(canvas, left, right, rng)
    for x in (-16.0, 16.0, -6.0, 6.0):
        paint_thing(canvas, "block", x, 60, 0, rng.uniform(0.8, 1.3), rng)
    things = list[tuple[float, float, str]]()
    lanes = rng.permutation(("bicyclist car", "car pedestrian", "pedestrian bicyclist"))
    for kerb, lane in ((left, lanes[0]), (right, lanes[1])):
        _paint_walls(canvas, kerb * rng.uniform(1.9, 2.1), rng)
        things += _place_things(canvas, kerb, lane.split(), rng)
    for z, x, name in sorted(things, reverse=True):
        canvas.paint(GROUND, disc(x + 1j * z, 2.0 if name == "car" else 0.5), np.zeros(3), alpha=60)  # its shadow
        paint_thing(canvas, name, x, z, np.pi * (x > 0) + rng.uniform(-0.4, 0.4), 1, rng)
    return _develop(canvas, rng)


def _paint_sky(canvas: Canvas, rng: Generator) -> None:
    """Paint clouds before a sky that fades towards the horizon; the mask is all sky, class 0, from the beginning."""
    noise = Image.fromarray(rng.normal(size=(12, 5)).astype(np.float32)).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    cover = (np.asarray(noise) * 0.6 + rng.uniform(-0.4, 0.5)).clip(0, 0.85)[..., None]
    sky = canvas.zenith + np.linspace(0, 2, SIZE[0]).clip(0, 1)[:, None, None] * (canvas.haze - canvas.zenith)
    pixels = sky + cover * (canvas.haze * 0.5 + canvas.light * 122 - sky)
    canvas.image.paste(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize(canvas.image.size))


def _paint_ground(canvas: Canvas, left: float, right: float, rng: Generator) -> None:
    """Paint pavement from side to side, the road upon it with kerbs and markings, in rows that fade into the haze."""
    slab, asphalt, white = pick("slab", rng), pick("dimgray", rng), pick("white", rng)
    z, dashes = np.arange(1.2, 70, 1.0), np.arange(rng.uniform(1.5, 4.5), 45, 4)
    slabs = slab * np.resize((1.0, 0.85), (len(z) - 1, 1))
    for width, color, label in ((90, slabs, PAVEMENT), (0.25, slab * 1.1, PAVEMENT), (0, asphalt, ROAD)):
        canvas.paint(GROUND, box(left - width, z[:-1], right + width, z[1:]), color, label)
    canvas.paint(GROUND, box(-0.08, dashes, 0.08, dashes + 1.8), white)
    if rng.random() < 0.4:  # a crossing
        stripes, near = np.arange(left + 0.4, right - 0.6, 1.0), rng.uniform(6, 14)
        canvas.paint(GROUND, box(stripes, near, stripes + 0.5, near + 2.6), white)


def _paint_walls(canvas: Canvas, wall: float, rng: Generator) -> None:
    """Paint one side of the street from far to near: houses, here and there a tree, and mostly a fence."""
    side = np.sign(wall)
    for z in rng.uniform(8, 14) + np.arange(40, -1, -10):
        if rng.random() < 0.8:
            paint_thing(canvas, rng.choice(("house", "block")), wall + 7 * side, z, 0, rng.uniform(0.6, 1.3), rng)
        else:
            paint_thing(canvas, "tree", wall + 2.5 * side, z + 4, 0, 1, rng)
    if rng.random() < 0.8:
        z = canvas.nearest(wall) * rng.uniform(0.7, 0.9)
        paint_thing(canvas, rng.choice(("boards", "pickets")), 0.95 * wall, z, np.pi / 2, 1, rng)


def _place_things(canvas: Canvas, kerb: float, lane: list[str], rng: Generator) -> Iterator[tuple[float, float, str]]:
    """Yield z, x and name of what stands at a kerb, who walks behind it, and what is on the road beside it."""
    x = kerb + 0.55 * np.sign(kerb)
    z = canvas.nearest(x) * rng.uniform(1.05, 1.2)
    for names in rng.permutation(("lamp", "prohibition warning signal", "tree tree bin")):
        yield z, x, rng.choice(names.split())
        z *= rng.uniform(1.25, 1.45)
    x = kerb * rng.uniform(1.4, 1.7)
    yield canvas.nearest(x) * rng.uniform(1.1, 1.3), x, "pedestrian"
    x = kerb * rng.uniform(0.35, 0.6)
    z = canvas.nearest(x) + rng.uniform(4, 6)
    for name in lane:
        yield z, x, name
        z += rng.uniform(4, 6)


def _develop(canvas: Canvas, rng: Generator) -> tuple[Array, Array]:
    """Average the painting down, and add the grain of materials and the noise of a sensor."""
    mask = np.asarray(canvas.mask)[1::SUPERSAMPLING, 1::SUPERSAMPLING].copy()
    grain = np.where(np.isin(mask, (BUILDING, ROAD, PAVEMENT, TREE)), 6.0, 1.0)
    pixels = np.asarray(canvas.image.reduce(SUPERSAMPLING)) + (grain * rng.normal(size=SIZE))[..., None]
    pixels = pixels * rng.uniform(0.9, 1.15) + rng.normal(size=pixels.shape) * rng.uniform(0.5, 3)
    return pixels.clip(0, 255).astype(np.uint8), mask
