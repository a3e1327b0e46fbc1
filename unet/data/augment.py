"""Random views of a labelled image: image and mask moved together, then the image's colours changed.

image: HWC uint8 RGB, or Pillow's own; mask: HW uint8 class indices. A view is a box of the source (cropped, scaled,
maybe reaching past its borders), warped by a small rotation and an elastic deformation, maybe mirrored. The mask is
sampled once, by nearest neighbour, straight from the source; what lies outside the source is `IGNORE` and grey.
"""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet.data.image import Array
from unet.data.labels import IGNORE
from unet.data.settings import AugmentSettings
from unet.settings import Geometry

GREY = (127, 127, 127)
"""What the network sees outside an image: the middle of its input range."""

CELLS = 8
"""The warp is exact at the corners of CELLS x CELLS cells and bilinear inside each."""

ELASTIC_GRID = 3
"""Elastic deformation draws one displacement at each point of a 3 x 3 grid (Ronneberger et al., 2015, section 3.1)."""

Box = tuple[float, float, float, float]
Points = npt.NDArray[np.float64]


def augment(
    image: Image.Image | Array,
    mask: Array,
    *,
    geometry: Geometry,
    settings: AugmentSettings,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """A random view of `geometry.size`.

    At scale 1 it shows the whole source, resized, or (native) a crop of that size at native scale.
    """
    size = geometry.size
    source = (mask.shape[0], mask.shape[1])
    box = _draw_box(source, size if geometry.kind == "native" else source, settings, rng)
    corners = _draw_warp(size, settings, rng)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    labels = Image.fromarray(mask)
    if corners is None:
        seen = _cut(picture, box, size, Image.Resampling.BILINEAR, GREY)
        truth = _cut(labels, box, size, Image.Resampling.NEAREST, IGNORE)
    else:
        seen = _warp(*_cut_around(picture, box, size, corners), size, Image.Resampling.BILINEAR, GREY)
        scale = np.array([(box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0]])
        truth = _warp(labels, corners * scale + box[:2], size, Image.Resampling.NEAREST, IGNORE)
    for probability, flip in (
        (settings.flip, Image.Transpose.FLIP_LEFT_RIGHT),
        (settings.vertical_flip, Image.Transpose.FLIP_TOP_BOTTOM),
    ):
        if rng.random() < probability:
            seen, truth = seen.transpose(flip), truth.transpose(flip)
    return np.asarray(_jitter(seen, settings, rng)), np.asarray(truth)


def _draw_box(
    source: tuple[int, int], view: tuple[int, int], settings: AugmentSettings, rng: np.random.Generator
) -> Box:
    """Left, top, right, bottom in source pixels of what the view shows; may reach past the source."""
    low, high = settings.scale
    scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    height, width = view[0] / scale, view[1] / scale
    # Whole offsets: a crop at scale 1 is a copy, not resampled.
    top, left = round(rng.uniform() * (source[0] - height)), round(rng.uniform() * (source[1] - width))
    return left, top, left + width, top + height


def _cut(
    picture: Image.Image, box: Box, size: tuple[int, int], filter: Image.Resampling, fill: tuple[int, ...] | int
) -> Image.Image:
    """`box` of `picture` at `size`, `fill` outside the picture."""
    left, top, right, bottom = box
    across, down = (right - left) / size[1], (bottom - top) / size[0]  # source pixels per view pixel
    # The whole view pixels that lie inside the picture, and exactly the source they show.
    x0, x1 = _inside(left, across, picture.width, size[1])
    y0, y1 = _inside(top, down, picture.height, size[0])
    shown = (
        *_clip(left + x0 * across, left + x1 * across, picture.width),
        *_clip(top + y0 * down, top + y1 * down, picture.height),
    )
    shown = (shown[0], shown[2], shown[1], shown[3])
    part = picture.resize((x1 - x0, y1 - y0), filter, box=shown)
    if part.size == (size[1], size[0]):
        return part
    view = Image.new(picture.mode, (size[1], size[0]), fill)
    view.paste(part, (x0, y0))
    return view


def _cut_around(picture: Image.Image, box: Box, size: tuple[int, int], corners: Points) -> tuple[Image.Image, Points]:
    """`box` of `picture` with the margin that a warp reaches into, and `corners` in pixels of that."""
    margin = math.ceil(max(0.0, -corners.min(), *(corners.max((0, 1)) - size[::-1]))) + 1
    across, down = margin * (box[2] - box[0]) / size[1], margin * (box[3] - box[1]) / size[0]
    wider = (box[0] - across, box[1] - down, box[2] + across, box[3] + down)
    around = (size[0] + 2 * margin, size[1] + 2 * margin)
    return _cut(picture, wider, around, Image.Resampling.BILINEAR, GREY), corners + margin


def _clip(start: float, end: float, length: int) -> tuple[float, float]:
    """The part of start..end within 0..length; a sliver at least, as sources 1 pixel high need."""
    start = min(max(start, 0.0), length - 1e-3)
    return start, min(max(end, start + 1e-3), length)


def _inside(start: float, step: float, length: int, pixels: int) -> tuple[int, int]:
    first = math.ceil(max(0.0, -start) / step - 1e-6)
    last = math.floor((min(start + pixels * step, length) - start) / step + 1e-6)
    return min(first, pixels - 1), max(last, min(first, pixels - 1) + 1)


def _draw_warp(size: tuple[int, int], settings: AugmentSettings, rng: np.random.Generator) -> Points | None:
    """Where the cell corners of the view come from, [CELLS+1, CELLS+1, xy] in view pixels; None: nothing moves."""
    angle = math.radians(rng.uniform(-1, 1) * settings.rotate)
    bend = rng.normal(size=(2, ELASTIC_GRID, ELASTIC_GRID)) * settings.elastic * min(size)
    if rng.random() >= settings.warp or not (settings.rotate or settings.elastic):
        return None
    steps = np.linspace(0, 1, CELLS + 1)
    x, y = np.meshgrid(steps * size[1], steps * size[0])
    across, down = x - size[1] / 2, y - size[0] / 2
    smooth = [
        np.asarray(Image.fromarray(d.astype(np.float32)).resize((CELLS + 1,) * 2, Image.Resampling.BICUBIC))
        for d in bend
    ]
    return np.stack(
        [
            x + across * (math.cos(angle) - 1) - down * math.sin(angle) + smooth[0],
            y + across * math.sin(angle) + down * (math.cos(angle) - 1) + smooth[1],
        ],
        axis=-1,
    )


def _warp(
    picture: Image.Image,
    corners: Points,
    size: tuple[int, int],
    filter: Image.Resampling,
    fill: tuple[int, ...] | int,
) -> Image.Image:
    columns, rows = (np.linspace(0, length, CELLS + 1).round().astype(int).tolist() for length in size[::-1])
    boxes = [(left, top, right, bottom) for top, bottom in pairwise(rows) for left, right in pairwise(columns)]
    northwest, southwest = corners[:-1, :-1], corners[1:, :-1]
    southeast, northeast = corners[1:, 1:], corners[:-1, 1:]
    quads = np.stack([northwest, southwest, southeast, northeast], axis=2).reshape(-1, 8).tolist()
    mesh = list(zip(boxes, quads, strict=True))
    return picture.transform((size[1], size[0]), Image.Transform.MESH, mesh, filter, fillcolor=fill)


def _jitter(picture: Image.Image, settings: AugmentSettings, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast (about the mean colour) and saturation, as one linear map of RGB."""
    brightness, contrast, saturation = 1 + rng.uniform(-1, 1, 3) * (
        settings.brightness,
        settings.contrast,
        settings.saturation,
    )
    grey = np.tile([0.299, 0.587, 0.114], (3, 1))  # luma, ITU-R BT.601
    colors = brightness * (saturation * np.eye(3) + (1 - saturation) * grey)
    mean = np.asarray(picture.resize((1, 1), Image.Resampling.BOX)).reshape(3, 1)
    affine = np.hstack([contrast * colors, (1 - contrast) * colors @ mean])
    return picture.convert("RGB", tuple(affine.ravel().tolist()))
