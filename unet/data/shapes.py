"""Masks given as shapes with names, by COCO and labelme: drawn when a mask is read, later ones over earlier ones.

What no shape covers is the label named background, or ignored in a label set without one. A crowd of COCO is ignored.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from unet.data.labels import BACKGROUND, IGNORE, IGNORED, LabelSet
from unet.settings import RequestError


class ShapeError(ValueError):
    """Shapes that cannot be drawn; the message says why."""


@dataclass(frozen=True)
class Shape:
    """A region with a name; None for one that is ignored. One of the others is given; coordinates in pixels."""

    name: str | None
    outlines: tuple[tuple[float, ...], ...] = ()
    """Polygons of COCO, each x and y of its corners in turn: it covers the pixels whose middle lies inside."""
    polygon: tuple[float, ...] = ()
    """Corners of labelme: it covers the pixels that Pillow draws, as labelme does, those on its border too."""
    circle: tuple[float, ...] = ()
    """Left, top, right, bottom."""
    runs: tuple[int, ...] = ()
    """Lengths of runs outside and inside in turn, down the columns."""


@dataclass(frozen=True)
class Drawing:
    """The shapes of an image."""

    height: int
    width: int
    shapes: tuple[Shape, ...]

    def draw(self, labels: LabelSet) -> npt.NDArray[np.uint8]:
        """Return the class indices, HW uint8. Raise ShapeError: a name that no label has, or what is no region."""
        try:
            return self._draw(labels)
        except (ValueError, OverflowError, TypeError) as error:
            raise error if isinstance(error, ShapeError) else ShapeError(f"holds what is no region ({error})") from None

    def _draw(self, labels: LabelSet) -> npt.NDArray[np.uint8]:
        classes = {label.name: IGNORE if label.ignore else labels.names.index(label.name) for label in labels.labels}
        behind = [index for name, index in classes.items() if BACKGROUND.fullmatch(name)]
        mask = Image.new("L", (self.width, self.height), behind[0] if behind else IGNORE)
        draw = ImageDraw.Draw(mask)
        for shape in self.shapes:
            if shape.name is not None and shape.name not in classes:
                raise ShapeError(f"holds the name {shape.name}, which no label has; add it to the label file")
            fill = IGNORE if shape.name is None else classes[shape.name]
            for outline in shape.outlines:
                left, top, inside = _inside(outline, self.height, self.width)
                mask.paste(fill, (left, top), mask=Image.fromarray(inside))
            if shape.polygon:
                draw.polygon(shape.polygon, fill=fill)
            if shape.circle:
                draw.ellipse(shape.circle, fill=fill)
            if shape.runs:
                inside = np.repeat(np.arange(len(shape.runs)) % 2, shape.runs).astype(bool)
                if inside.size != self.width * self.height:
                    raise ShapeError("holds a region of another size than its image")
                mask.paste(fill, mask=Image.fromarray(np.ascontiguousarray(inside.reshape(self.width, self.height).T)))
        return np.asarray(mask)


def read_labelme(text: bytes) -> Drawing:
    """Return the shapes of a file of labelme. Raise ShapeError: it is none, or has points or lines."""
    try:
        content = json.loads(text)
        shapes = tuple(map(_labelme_shape, content["shapes"]))
        return Drawing(int(content["imageHeight"]), int(content["imageWidth"]), shapes)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ShapeError):
            raise
        raise ShapeError(f"is no file of labelme ({type(error).__name__}: {error})") from None


def read_coco(text: bytes, uri: str) -> dict[str, Drawing]:
    """Return the shapes of each image of a COCO file of instances, by its name.

    Raises:
        RequestError: names the file `uri` and what is wrong with it.
    """
    try:
        content = json.loads(text)
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        shapes: dict[Any, list[Shape]] = defaultdict(list)
        images = content["images"]
        sizes = {image["id"]: [int(image["height"]), int(image["width"])] for image in images}
        for annotation in content["annotations"]:
            size = sizes.get(annotation["image_id"], [])
            shapes[annotation["image_id"]].append(_coco_shape(annotation, names, size))
        drawings = {
            str(image["file_name"]): Drawing(int(image["height"]), int(image["width"]), tuple(shapes[image["id"]]))
            for image in images
        }
        if len(drawings) < len(images):
            raise ShapeError("names an image twice")
        if unknown := shapes.keys() - {image["id"] for image in images}:
            raise ShapeError(f"has shapes of an image {min(map(str, unknown))}, which it does not name")
        return drawings
    except ShapeError as error:
        raise RequestError(f"{uri}: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{uri}: is no COCO file of instances ({type(error).__name__}: {error})") from None


def _labelme_shape(shape: dict[str, Any]) -> Shape:
    points, kind = shape["points"], shape.get("shape_type") or "polygon"
    flat = tuple(float(value) for point in points for value in point)
    name = None if shape["label"] == IGNORED else str(shape["label"])
    if kind == "polygon" and len(points) > 2:
        return Shape(name, polygon=flat)
    if kind == "rectangle" and len(points) == 2:
        left, top, right, bottom = flat
        return Shape(name, polygon=(left, top, right, top, right, bottom, left, bottom))
    if kind == "circle" and len(points) == 2:
        x, y, radius = flat[0], flat[1], float(np.hypot(flat[2] - flat[0], flat[3] - flat[1]))
        return Shape(name, circle=(x - radius, y - radius, x + radius, y + radius))
    raise ShapeError(f"holds a {kind} of {len(points)} points, which covers no region; use polygons")


def _coco_shape(annotation: dict[str, Any], names: dict[Any, str], size: list[int]) -> Shape:
    name = None if annotation.get("iscrowd") else names[annotation["category_id"]]
    regions = annotation["segmentation"]
    if isinstance(regions, dict):
        if list(regions.get("size", size)) != size:
            raise ShapeError(f"the annotation {annotation.get('id')} has a region of another size than its image")
        counts = regions["counts"]
        return Shape(name, runs=_unpack_runs(counts) if isinstance(counts, str) else tuple(map(int, counts)))
    outlines = tuple(tuple(map(float, region)) for region in regions if len(region) > 5)
    if not outlines:
        raise ShapeError(f"the annotation {annotation.get('id')} has no polygon; boxes alone are no masks")
    return Shape(name, outlines=outlines)


def _inside(outline: Sequence[float], height: int, width: int) -> tuple[int, int, npt.NDArray[np.bool_]]:
    """Return left and top of a rectangle of the image, and where in it the middles of pixels lie inside a polygon:
    where an odd number of its edges is crossed on the way from the left (even-odd rule)."""
    corners = np.asarray(outline).reshape(-1, 2)
    if not np.isfinite(corners).all():
        raise ShapeError("holds a corner that is nowhere")
    least, most = np.floor(corners.min(0)), np.ceil(corners.max(0))
    left, top = least.clip(0, (width - 1, height - 1)).astype(int).tolist()
    right, bottom = most.clip((left + 1, top + 1), (width, height)).astype(int).tolist()
    crossed = np.zeros((bottom - top, right - left + 1), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        rows = np.arange(*(math.ceil(min(max(y, top), bottom) - 0.5) for y in sorted((y0, y1))))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossed[rows - top, np.ceil(x - 0.5).clip(left, right).astype(int) - left] ^= True
    return left, top, np.logical_xor.accumulate(crossed, axis=1)[:, :-1]


def _unpack_runs(text: str) -> tuple[int, ...]:
    """Return the lengths of the runs in COCO's text: numbers of 5 bits a character, lowest first, the sixth bit if more
    follow; signed, and from the third on the difference to the one before the last."""
    runs, number, shift = list[int](), 0, 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= 1 << shift if bits & 16 else 0
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return tuple(runs)
