"""Augmentation: random views of a labelled image, image and mask moved together, then the image's colours changed.

image: HWC uint8 RGB, or Pillow's own; mask: HW uint8 class indices. A view shows a box of the source (cropped, scaled,
perhaps reaching past its borders), warped by a small rotation and an elastic deformation, perhaps mirrored. The mask is
sampled once, by nearest neighbour, from the source itself; what lies outside the source is `IGNORE` and grey.
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
"""The image's colour outside the source: the middle of the network's input range."""

MESH_CELLS = 8
"""The warp is exact at the corners of MESH_CELLS x MESH_CELLS cells and bilinear inside each."""

ELASTIC_GRID = 3
"""Elastic deformation draws one displacement at each point of a 3 x 3 grid (Ronneberger et al., 2015, section 3.1)."""

Size = tuple[int, int]
"""Height and width."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Points = npt.NDArray[np.float64]
"""[rows, columns, xy]."""
Fill = tuple[int, ...] | int


def augment(
    image: Image.Image | Array,
    mask: Array,
    *,
    geometry: Geometry,
    settings: AugmentSettings,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Return image and mask of a random view of `geometry.size`.

    At scale 1 it shows the whole source, resized, or (native) a crop of that size at native scale.
    """
    size = geometry.size
    source_size = (mask.shape[0], mask.shape[1])
    box = _draw_box(source_size, size if geometry.kind == "native" else source_size, settings, rng)
    corners = _draw_warp(size, settings, rng)
    source = image if isinstance(image, Image.Image) else Image.fromarray(image)
    source_mask = Image.fromarray(mask)
    if corners is None:
        view = _crop(source, box, size, Image.Resampling.BILINEAR, GREY)
        view_mask = _crop(source_mask, box, size, Image.Resampling.NEAREST, IGNORE)
    else:
        view = _warp(*_crop_with_margin(source, box, size, corners), size, Image.Resampling.BILINEAR, GREY)
        scale = np.array([(box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0]])
        view_mask = _warp(source_mask, corners * scale + box[:2], size, Image.Resampling.NEAREST, IGNORE)
    for probability, flip in (
        (settings.flip, Image.Transpose.FLIP_LEFT_RIGHT),
        (settings.vertical_flip, Image.Transpose.FLIP_TOP_BOTTOM),
    ):
        if rng.random() < probability:
            view, view_mask = view.transpose(flip), view_mask.transpose(flip)
    return np.asarray(_jitter_colors(view, settings, rng)), np.asarray(view_mask)


def _draw_box(source: Size, view: Size, settings: AugmentSettings, rng: np.random.Generator) -> Box:
    """Return the box, in source pixels, that the view shows; it may reach past the source."""
    low, high = settings.scale
    scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    height, width = view[0] / scale, view[1] / scale
    # Whole offsets: a crop at scale 1 is a copy, not resampled.
    top, left = round(rng.uniform() * (source[0] - height)), round(rng.uniform() * (source[1] - width))
    return left, top, left + width, top + height


def _crop(source: Image.Image, box: Box, size: Size, resampling: Image.Resampling, fill: Fill) -> Image.Image:
    """Return `box` of `source` resized to `size`, `fill` outside the source."""
    left, top, right, bottom = box
    x_step, y_step = (right - left) / size[1], (bottom - top) / size[0]  # source pixels per view pixel
    # The whole view pixels that lie inside the source, and exactly the part of the source that they show.
    x0, x1 = _pixels_inside(left, x_step, source.width, size[1])
    y0, y1 = _pixels_inside(top, y_step, source.height, size[0])
    part_left, part_right = _clip(left + x0 * x_step, left + x1 * x_step, source.width)
    part_top, part_bottom = _clip(top + y0 * y_step, top + y1 * y_step, source.height)
    part = source.resize((x1 - x0, y1 - y0), resampling, box=(part_left, part_top, part_right, part_bottom))
    if part.size == (size[1], size[0]):
        return part
    view = Image.new(source.mode, (size[1], size[0]), fill)
    view.paste(part, (x0, y0))
    return view


def _crop_with_margin(source: Image.Image, box: Box, size: Size, corners: Points) -> tuple[Image.Image, Points]:
    """Return `box` of `source` with the margin that a warp reaches into, and `corners` in pixels of that."""
    margin = math.ceil(max(0.0, -corners.min(), *(corners.max((0, 1)) - size[::-1]))) + 1
    x_margin, y_margin = margin * (box[2] - box[0]) / size[1], margin * (box[3] - box[1]) / size[0]
    wider_box = (box[0] - x_margin, box[1] - y_margin, box[2] + x_margin, box[3] + y_margin)
    wider_size = (size[0] + 2 * margin, size[1] + 2 * margin)
    return _crop(source, wider_box, wider_size, Image.Resampling.BILINEAR, GREY), corners + margin


def _clip(start: float, end: float, length: int) -> tuple[float, float]:
    """Return the part of start..end within 0..length; a sliver at least, as sources 1 pixel high need."""
    start = min(max(start, 0.0), length - 1e-3)
    return start, min(max(end, start + 1e-3), length)


def _pixels_inside(start: float, step: float, length: int, pixels: int) -> tuple[int, int]:
    """Return first and last + 1 of `pixels`, each `step` long, from `start` on, that lie in 0..length; one at least."""
    first = min(math.ceil(max(0.0, -start) / step - 1e-6), pixels - 1)
    last = math.floor((min(start + pixels * step, length) - start) / step + 1e-6)
    return first, max(last, first + 1)


def _draw_warp(size: Size, settings: AugmentSettings, rng: np.random.Generator) -> Points | None:
    """Return the points of the unwarped view that the mesh's corners show, in view pixels; None for no warp."""
    angle = math.radians(rng.uniform(-1, 1) * settings.rotate)
    displacements = rng.normal(size=(2, ELASTIC_GRID, ELASTIC_GRID)) * settings.elastic * min(size)
    if rng.random() >= settings.warp or not (settings.rotate or settings.elastic):
        return None
    steps = np.linspace(0, 1, MESH_CELLS + 1)
    x, y = np.meshgrid(steps * size[1], steps * size[0])
    from_center_x, from_center_y = x - size[1] / 2, y - size[0] / 2
    elastic_x, elastic_y = (
        np.asarray(Image.fromarray(d.astype(np.float32)).resize((MESH_CELLS + 1,) * 2, Image.Resampling.BICUBIC))
        for d in displacements
    )
    warped_x = x + from_center_x * (math.cos(angle) - 1) - from_center_y * math.sin(angle) + elastic_x
    warped_y = y + from_center_x * math.sin(angle) + from_center_y * (math.cos(angle) - 1) + elastic_y
    return np.stack([warped_x, warped_y], axis=-1)


def _warp(source: Image.Image, corners: Points, size: Size, resampling: Image.Resampling, fill: Fill) -> Image.Image:
    """Return a view of `size` whose mesh corners show the points `corners` of `source`."""
    columns, rows = (np.linspace(0, length, MESH_CELLS + 1).round().astype(int).tolist() for length in size[::-1])
    boxes = [(left, top, right, bottom) for top, bottom in pairwise(rows) for left, right in pairwise(columns)]
    northwest, southwest = corners[:-1, :-1], corners[1:, :-1]
    southeast, northeast = corners[1:, 1:], corners[:-1, 1:]
    quads = np.stack([northwest, southwest, southeast, northeast], axis=2).reshape(-1, 8).tolist()
    mesh = list(zip(boxes, quads, strict=True))
    return source.transform((size[1], size[0]), Image.Transform.MESH, mesh, resampling, fillcolor=fill)


def _jitter_colors(image: Image.Image, settings: AugmentSettings, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast (about the mean colour) and saturation by one linear map of RGB."""
    strengths = (settings.brightness, settings.contrast, settings.saturation)
    brightness, contrast, saturation = 1 + rng.uniform(-1, 1, 3) * strengths
    grey = np.tile([0.299, 0.587, 0.114], (3, 1))  # luma, ITU-R BT.601
    colors = brightness * (saturation * np.eye(3) + (1 - saturation) * grey)
    mean = np.asarray(image.resize((1, 1), Image.Resampling.BOX)).reshape(3, 1)
    affine = np.hstack([contrast * colors, (1 - contrast) * colors @ mean])
    return image.convert("RGB", tuple(affine.ravel().tolist()))
