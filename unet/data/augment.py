"""Augmentation: random views of a labelled image, image and mask moved together, then the image's colours changed.

image: planes; mask: HW uint8 class indices. A view shows a box of the source (cropped, scaled,
perhaps reaching past its borders), warped by a small rotation and an elastic deformation, perhaps mirrored. The mask is
sampled once, by nearest neighbour, from the source itself; what lies outside the source is `IGNORE` and grey. A view is
drawn from the size of the source alone, and rendered from the pixels that it depends on.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet.data.channels import WITHOUT_DATA
from unet.data.image import Array
from unet.data.labels import IGNORE
from unet.data.planes import Planes, join_planes
from unet.data.settings import AugmentSettings
from unet.data.tiff import Region
from unet.settings import Geometry

Fill = tuple[int, ...] | int

GREY: dict[str, Fill] = {"RGB": (WITHOUT_DATA,) * 3, "L": WITHOUT_DATA}
"""What is put in place of pixels outside the source, by the mode of the plane."""

MESH_CELLS = 8
"""The warp is exact at the corners of MESH_CELLS x MESH_CELLS cells and bilinear inside each."""

ELASTIC_GRID = 3
"""Elastic deformation draws one displacement at each point of a 3 x 3 grid (Ronneberger et al., 2015, section 3.1)."""

SMALL_PIXELS = 1 << 20
"""A source of as many pixels at most is decoded whole."""

FLIPS = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)

Size = tuple[int, int]
"""Height and width."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Points = npt.NDArray[np.float64]
"""[rows, columns, xy]."""


class Colors(NamedTuple):
    """How colours are changed."""

    brightness: float
    contrast: float
    saturation: float
    """Factors of the three."""
    gamma: float
    """Exponent of the samples, as shares of white."""
    balance: tuple[float, float, float]
    """Factors of red, green and blue."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What is shown of a source, drawn from its size alone: before a pixel of it is decoded."""

    source: Size
    size: Size
    box: Box
    """What the view shows, in pixels of the source; it may reach past it."""
    corners: Points | None
    """Where the corners of the mesh point to in the unwarped view [pixels]; None for no warp."""
    flips: tuple[bool, bool]
    """Whether it is mirrored left and right, top and bottom."""
    colors: Colors

    @property
    def region(self) -> Region:
        """The pixels of the source that the view depends on; of a small source all."""
        height, width = self.source
        if height * width <= SMALL_PIXELS:
            return 0, 0, width, height
        box = self.box if self.corners is None else _margin(self.box, self.size, self.corners)[0]
        spans = zip(box[:2], box[2:], self.size[::-1], (width, height), strict=True)
        (left, right), (top, bottom) = (_needed(*span) for span in spans)
        return left, top, right, bottom

    def render(self, image: Planes, mask: Array) -> tuple[Array, Array]:
        """Return image, HWC, and mask of the view. `image` and `mask` are those of its region."""
        planes = tuple(_change_colors(self._flip(self._image_of(plane)), self.colors) for plane in image.images)
        return join_planes(planes), np.asarray(self._flip(self._mask_of(Image.fromarray(mask))))

    def _image_of(self, part: Image.Image) -> Image.Image:
        fill = GREY[part.mode]
        if self.corners is None:
            return self._crop(part, self.box, self.size, Image.Resampling.BILINEAR, fill)
        box, size, corners = _margin(self.box, self.size, self.corners)
        wider = self._crop(part, box, size, Image.Resampling.BILINEAR, fill)
        return _warp(wider, corners, self.size, Image.Resampling.BILINEAR, fill)

    def _mask_of(self, part: Image.Image) -> Image.Image:
        if self.corners is None:
            return self._crop(part, self.box, self.size, Image.Resampling.NEAREST, IGNORE)
        scale = np.array([(self.box[2] - self.box[0]) / self.size[1], (self.box[3] - self.box[1]) / self.size[0]])
        points = self.corners * scale + self.box[:2] - self.region[:2]
        return _warp(part, points, self.size, Image.Resampling.NEAREST, IGNORE)

    def _flip(self, view: Image.Image) -> Image.Image:
        for flipped, flip in zip(self.flips, FLIPS, strict=True):
            view = view.transpose(flip) if flipped else view
        return view

    def _crop(self, part: Image.Image, box: Box, size: Size, resampling: Image.Resampling, fill: Fill) -> Image.Image:
        """Return `box` of the source resized to `size`, `fill` outside it. `part`: image or mask of the region."""
        left, top, right, bottom = box
        height, width = self.source
        x_step, y_step = (right - left) / size[1], (bottom - top) / size[0]  # source pixels per view pixel
        # The whole view pixels that lie inside the source, and exactly the part of the source that they show.
        x0, x1 = _pixels_inside(left, x_step, width, size[1])
        y0, y1 = _pixels_inside(top, y_step, height, size[0])
        shown_left, shown_right = _clip(left + x0 * x_step, left + x1 * x_step, width)
        shown_top, shown_bottom = _clip(top + y0 * y_step, top + y1 * y_step, height)
        # Pillow takes a box in 32 bits. Rounded before it is moved, it is the same box of the part.
        edges = np.array([shown_left, shown_top, shown_right, shown_bottom], np.float32) - self.region[:2] * 2
        shown = part.resize((x1 - x0, y1 - y0), resampling, box=tuple(edges.tolist()))
        if shown.size == (size[1], size[0]):
            return shown
        view = Image.new(shown.mode, (size[1], size[0]), fill)
        view.paste(shown, (x0, y0))
        return view


def mix_classes(view: tuple[Array, Array], other: tuple[Array, Array], rng: np.random.Generator) -> tuple[Array, Array]:
    """Return image and mask of a view, with the pixels of half of the classes of another laid over it (ClassMix, Olsson
    et al., 2021)."""
    (image, mask), (over, labels) = view, other
    classes = rng.permutation(np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORE + 1)[:IGNORE]))
    laid = np.isin(labels, classes[: max(1, len(classes) // 2)])
    return np.where(laid[..., None], over, image), np.where(laid, labels, mask)


def draw_view(source: Size, *, geometry: Geometry, settings: AugmentSettings, rng: np.random.Generator) -> View:
    """Return a random view, of `geometry.size`, of a source.

    At scale 1 it shows the whole source, resized, or (native) a crop of that size at native scale.
    """
    box = _draw_box(source, geometry.size if geometry.kind == "native" else source, settings, rng)
    corners = _draw_warp(geometry.size, settings, rng)
    flips = rng.random() < settings.flip, rng.random() < settings.vertical_flip
    strengths = (settings.brightness, settings.contrast, settings.saturation)
    brightness, contrast, saturation = (1 + rng.uniform(-1, 1, 3) * strengths).tolist()
    exponents = rng.uniform(-1, 1, 4) * (settings.gamma, *[settings.white_balance] * 3)
    gamma, red, green, blue = np.exp(exponents).tolist()
    colors = Colors(brightness, contrast, saturation, gamma, (red, green, blue))
    return View(source=source, size=geometry.size, box=box, corners=corners, flips=flips, colors=colors)


def _draw_box(source: Size, view: Size, settings: AugmentSettings, rng: np.random.Generator) -> Box:
    """Return the box, in source pixels, that the view shows; it may reach past the source."""
    low, high = settings.scale
    scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    height, width = view[0] / scale, view[1] / scale
    # Whole offsets: a crop at scale 1 is a copy, not resampled.
    top, left = round(rng.uniform() * (source[0] - height)), round(rng.uniform() * (source[1] - width))
    return left, top, left + width, top + height


def _needed(start: float, end: float, pixels: int, length: int) -> tuple[int, int]:
    """Return the pixels of 0..length that `pixels` of a view are computed from, which show start..end."""
    margin = max(1.0, (end - start) / pixels) + 1  # what a bilinear filter reaches past the box
    return max(0, math.floor(start - margin)), min(length, math.ceil(end + margin))


def _margin(box: Box, size: Size, corners: Points) -> tuple[Box, Size, Points]:
    """Return `box` and `size` with the margin that a warp reaches into, and `corners` in pixels of that."""
    margin = math.ceil(max(0.0, -corners.min(), *(corners.max((0, 1)) - size[::-1]))) + 1
    x_margin, y_margin = margin * (box[2] - box[0]) / size[1], margin * (box[3] - box[1]) / size[0]
    wider_box = (box[0] - x_margin, box[1] - y_margin, box[2] + x_margin, box[3] + y_margin)
    return wider_box, (size[0] + 2 * margin, size[1] + 2 * margin), corners + margin


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


def _change_colors(image: Image.Image, colors: Colors) -> Image.Image:
    """Change gamma, then brightness, contrast (about the mean colour), saturation and white balance by one linear map
    of RGB; of a band in gray its gain and offset."""
    brightness, contrast, saturation, gamma, balance = colors
    if gamma != 1:
        image = image.point([round(255 * (sample / 255) ** gamma) for sample in range(256)] * len(image.getbands()))
    mean = np.asarray(image.resize((1, 1), Image.Resampling.BOX)).reshape(-1, 1)
    if image.mode == "L":
        gain, offset = contrast * brightness, (1 - contrast) * brightness * float(mean[0, 0])
        return image.point([min(255, max(0, round(gain * sample + offset))) for sample in range(256)])
    grey = np.tile([0.299, 0.587, 0.114], (3, 1))  # luma, ITU-R BT.601
    rgb = brightness * np.diag(balance) @ (saturation * np.eye(3) + (1 - saturation) * grey)
    affine = np.hstack([contrast * rgb, (1 - contrast) * rgb @ mean])
    return image.convert("RGB", tuple(affine.ravel().tolist()))
