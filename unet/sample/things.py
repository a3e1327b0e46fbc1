"""What a generated scene is made of: classes, colours, and each thing as parts in a table.

A material may belong to several classes, so that colour alone does not tell what a pixel is.
"""

import numpy as np
from numpy.random import Generator
from PIL import ImageColor

from unet.data.labels import IGNORE, built_in_labels
from unet.sample.canvas import Canvas, Floats, Shapes, bar, box, disc, grid, solid, stand

LABELS = built_in_labels("camvid")
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(len(LABELS.classes))

COLORS = {
    "wall": "#a65442 #a65442 #d4bc94 #eae0cc #606c7a #96a88a #d2948a #96928c #e0ac46 #6898cc",
    "paint": "#c43a32 #ececec #36383e #34466e #468080 #6898cc #e0ac46 #606c7a #704a66",
    "metal": "#36383e #606c7a #96928c #468080 #36383e",
    "timber": "#946846 #ecece8 #ecece8 #96a88a #468080 #d4bc94",
    "cloth": "#34466e #704a66 #36383e #468080 #c43a32",
    "leaves": "#547c3a #3c6442 #748e46 #5e8450 #ba843a #a85436 #ce969e",
    "skin": "#eec8ac #d09e7c #96684c #644434",
    "slab": "#969696 #b0a490 #bea096",
}
"""The colours in which a material comes; of any other material, its name is its colour."""

FLAT = np.array([[(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]], np.float64)
WALLS = solid((6, 0, 8, 0), (6, 0, 8, 8))[:4]
BODY = solid((0.88, -2.1, 2.1, 0.28), (0.86, -2.1, 2.1, 0.92))
CABIN = solid((0.84, -1.9, 0.9, 0.92), (0.68, -1.6, 0.3, 1.6))
WHOLE, WHEELS = box(0, 0, 1, 1), np.array([-0.55 + 0.38j, 0.55 + 0.38j])
CROWN = 3.6j + 1j * np.sort(np.sqrt(np.arange(64)) * np.exp(2.4j * np.arange(64)) * 0.18)  # of leaves, from below
TONES = np.linspace(0.6, 1.0, 64)[:, None] * np.resize((0.8, 1.0, 1.2), (64, 1))  # of the leaves: brighter above

PARTS: tuple[tuple[str, int, Floats, str, float | Floats, Shapes], ...] = (
    ("house block", BUILDING, WALLS, "wall", 1.0, WHOLE),
    ("house block", BUILDING, WALLS, "timber", 0.8, box(0, 0.96, 1, 1.02)),
    ("house", BUILDING, WALLS, "timber", 0.8, grid(4, 2, box(0.22, 0.27, 0.72, 0.85))),
    ("house", BUILDING, WALLS, "slategray", 0.8, grid(4, 2, box(0.25, 0.3, 0.7, 0.8))),
    ("block", BUILDING, WALLS, "slategray", 0.8, grid(5, 4, box(0.15, 0.25, 0.85, 0.75))),
    ("boards pickets", FENCE, FLAT, "timber", 0.3, box(0, 0, 8, 1.7)),
    ("boards", FENCE, FLAT, "timber", 1.0, box(0, np.array([0.1, 0.65, 1.2]), 8, np.array([0.5, 1.05, 1.6]))),
    ("pickets", FENCE, FLAT, "timber", 1.0, box(np.arange(16) / 2, 0.1, np.arange(16) / 2 + 0.3, 1.8)),
    ("prohibition warning signal", POLE, FLAT, "metal", 1.0, bar(0.28, 0.1j, 2.6j)),
    ("prohibition warning signal lamp", POLE, FLAT, "metal", 0.8, box(-0.24, 0, 0.24, 0.5)),
    ("lamp", POLE, FLAT, "metal", 1.0, bar(0.32, 0.4j, 4.6j, 1.2 + 4.8j)),
    ("prohibition", SIGN, FLAT, "paint", 1.0, disc(2.6j, 0.55)),
    ("prohibition", SIGN, FLAT, "white", 0.9, disc(2.6j, 0.42)),
    ("warning", SIGN, FLAT, "paint", 1.0, disc(2.6j, 0.7, 3)),
    ("warning", SIGN, FLAT, "white", 0.9, disc(2.6j, 0.48, 3)),
    ("signal", SIGN, FLAT, "metal", 0.5, box(-0.34, 1.9, 0.34, 3.4)),
    ("signal", SIGN, FLAT, "tomato", 1.0, disc(3.12j, 0.2)),
    ("signal", SIGN, FLAT, "orange", 0.4, disc(2.65j, 0.2)),
    ("signal", SIGN, FLAT, "green", 0.5, disc(2.18j, 0.2)),
    ("bin", IGNORE, FLAT, "metal", 1.0, box(-0.3, 0, 0.3, 0.95)),
    ("bin", IGNORE, FLAT, "metal", 0.6, box(-0.36, 0.9, 0.36, 1.08)),
    ("tree", TREE, FLAT, "sienna", 0.7, bar(0.4, 0.1j, 2.8j)),
    ("tree", TREE, FLAT, "leaves", TONES, disc(CROWN, 0.42)),
    ("car", CAR, BODY, "paint", 1.0, WHOLE),
    ("car", CAR, BODY[[1, 3]], "black", 1.0, grid(2, 1, disc(0.5, 0.2))),
    ("car", CAR, BODY[[0]], "tomato", 0.9, grid(2, 1, box(0.2, 0.6, 0.6, 0.9))),
    ("car", CAR, BODY[[2]], "white", 1.0, grid(2, 1, box(0.4, 0.6, 0.8, 0.9))),
    ("car", CAR, CABIN, "paint", 1.0, WHOLE),
    ("car", CAR, CABIN[:4], "slategray", 0.7, box(0.1, 0.1, 0.9, 0.85)),
    ("pedestrian", PEDESTRIAN, FLAT, "cloth", 0.7, bar(0.25, -0.2 + 0.08j, 0.85j, 0.25 + 0.08j)),
    ("pedestrian", PEDESTRIAN, FLAT, "paint", 0.8, bar(0.16, -0.36 + 0.85j, -0.2 + 1.35j, 0.2 + 1.35j, 0.36 + 0.85j)),
    ("pedestrian", PEDESTRIAN, FLAT, "paint", 1.0, bar(0.5, 0.9j, 1.3j)),
    ("pedestrian", PEDESTRIAN, FLAT, "metal", 0.6, disc(1.68j, 0.18)),
    ("pedestrian", PEDESTRIAN, FLAT, "skin", 1.0, disc(0.03 + 1.64j, 0.14)),
    ("bicyclist", BICYCLIST, FLAT, "black", 0.6, disc(WHEELS, 0.38)),
    ("bicyclist", BICYCLIST, FLAT, "dimgray", 0.8, disc(WHEELS, 0.28)),
    ("bicyclist", BICYCLIST, FLAT, "metal", 1.0, bar(0.1, -0.55 + 0.38j, -0.2 + 0.9j, 0.4 + 0.9j, 0.55 + 0.38j)),
    ("bicyclist", BICYCLIST, FLAT, "cloth", 0.7, bar(0.2, -0.18 + 0.98j, 0.2 + 0.72j, -0.02 + 0.3j)),
    ("bicyclist", BICYCLIST, FLAT, "paint", 1.0, bar(0.36, -0.12 + 1.08j, 0.18 + 1.42j)),
    ("bicyclist", BICYCLIST, FLAT, "paint", 0.8, bar(0.15, 0.2 + 1.42j, 0.42 + 1.06j)),
    ("bicyclist", BICYCLIST, FLAT, "skin", 1.0, disc(0.34 + 1.7j, 0.16)),
    ("bicyclist", BICYCLIST, FLAT, "timber", 1.0, bar(0.14, 0.2 + 1.8j, 0.46 + 1.82j)),
)
"""Parts: of which things, class, quads [m], material, brightness, shapes. Later ones cover earlier ones."""


def pick(material: str, rng: Generator) -> Floats:
    """Return one of a material's colours, a little brighter or darker and less pure."""
    color = np.array(ImageColor.getrgb(rng.choice(COLORS.get(material, material).split())))
    return color * rng.uniform(0.75, 1.1) + rng.normal(size=3) * 6


def paint_thing(canvas: Canvas, name: str, x: float, z: float, turn: float, height: float, rng: Generator) -> None:
    """Paint a thing that stands at (x, z), turned, and `height` times as high as in the table, more or less."""
    stretch, colors = rng.uniform(0.95, 1.2, 3) * (1, height, 1), dict[str, Floats]()
    for names, label, quads, material, brightness, shapes in PARTS:
        if name in names.split():
            color = colors.setdefault(material, pick(material, rng)) * brightness
            for quad in stand(quads * stretch, x, z, turn):
                if light := 1.0 if quads is FLAT else canvas.brightness(quad):
                    canvas.paint(quad, shapes, color * light, label)
