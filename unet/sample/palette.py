"""What a generated scene is made of: CamVid's classes by name, and the colours of its materials.

A colour is RGB, 0..255, in plain light; the canvas adds the light of the day and the haze. Classes share colours, so
that colour alone does not tell what a pixel is.
"""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from unet.data.labels import BUILT_IN

LABELS = BUILT_IN["camvid"]
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(len(LABELS.classes))
"""The classes of a scene, as indices into `LABELS.classes`."""

Color = tuple[float, float, float]
"""Red, green and blue."""

# fmt: off
BRICK, SAND, CREAM, SLATE, TEAL = (166, 84, 66), (212, 188, 148), (234, 224, 204), (96, 108, 122), (70, 128, 128)
NAVY, RED, MUSTARD, SAGE, PLUM = (52, 70, 110), (196, 58, 50), (224, 172, 70), (150, 168, 138), (112, 74, 102)
WHITE, COAL, BLUE, ROSE, WOOD = (236, 236, 232), (54, 56, 62), (104, 152, 204), (210, 148, 138), (148, 104, 70)
STONE = (150, 146, 140)
WALLS = (BRICK, BRICK, SAND, CREAM, SLATE, SAGE, ROSE, STONE, MUSTARD, BLUE)
CARS = (RED, WHITE, COAL, NAVY, TEAL, BLUE, MUSTARD, SLATE, BRICK)
METAL = (COAL, SLATE, STONE, TEAL, COAL)
TIMBER = (WOOD, WHITE, WHITE, SAGE, TEAL, SAND)
CLOTHES = (NAVY, PLUM, RED, ROSE, COAL, WHITE, TEAL)
JERSEYS = (MUSTARD, RED, WHITE, BLUE)
BOARDS = (RED, NAVY, RED, BLUE, TEAL)
FOLIAGE = ((84, 124, 58), (60, 100, 66), (116, 142, 70), (94, 132, 80), (186, 132, 58), (168, 84, 54), (206, 150, 158))
SKIN = ((238, 200, 172), (208, 158, 124), (150, 104, 76), (100, 68, 52))
# fmt: on


def pick(colors: Sequence[Color], rng: Generator) -> Color:
    """One of `colors`, made a little brighter or darker and less pure."""
    r, g, b = np.array(colors[int(rng.integers(len(colors)))]) * rng.uniform(0.75, 1.1) + rng.normal(size=3) * 6
    return float(r), float(g), float(b)


def shaded(color: Color, factor: float) -> Color:
    """`color`, darker below a `factor` of 1 and brighter above."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)
