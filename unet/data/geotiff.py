"""Masks as GeoTIFFs, which lie where their images do."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from unet.data.image import Array, mask_values
from unet.data.labels import LabelSet
from unet.data.planes import Bools
from unet.data.provenance import GDAL_METADATA, to_gdal_metadata
from unet.data.region import orientation_of
from unet.data.tiff import NODATA, TiffPicture

SCALE, TIE_POINTS, TRANSFORMATION, KEYS = 33550, 33922, 34264, 34735
GEOREFERENCE = (SCALE, TIE_POINTS, TRANSFORMATION, KEYS, 34736, 34737)
"""Tags: scale, tie points, transformation, and the keys with their numbers and texts (OGC GeoTIFF 1.1)."""

GEOGRAPHIC, PROJECTED, RASTER_TYPE = 2048, 3072, 1025
"""Keys: the number of the coordinate reference system at EPSG, and whether coordinates are those of pixels' centres."""

USER_DEFINED, PIXEL_IS_POINT = 32767, 2
"""Values of keys."""

TILE = 256
"""Height and width [pixels]: what GDAL makes."""

Georeference = tuple[tuple[int, int, int, Any, bool], ...]
"""Tags as tifffile writes them: code, type, count, value, and that only the first page has them."""

Affine = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: the point (x, y) of the grid of pixels lies at (a x + b y + c, d x + e y + f) of the map."""


def georeference_of(picture: Image.Image) -> Georeference:
    """Return where an opened image lies on Earth; nothing if it does not say, or is turned when displayed."""
    if not isinstance(picture, TiffPicture) or orientation_of(picture) != 1:
        return ()
    tags = (
        (tag, tag.value.encode() if isinstance(tag.value, str) else tag.value) for tag in picture.tags(GEOREFERENCE)
    )
    return tuple((tag.code, int(tag.dtype), tag.count, value, True) for tag, value in tags)


def placement_of(georeference: Georeference) -> tuple[Affine | None, str | None]:
    """Return how the grid of pixels lies on the map, and the coordinate reference system as in EPSG:32633. None: the
    file does not say, or says it otherwise than by an affine transformation and a number of EPSG."""
    tags = {code: value for code, _, _, value, _ in georeference}
    numbers = np.reshape(tags.get(KEYS, ()), (-1, 4))[1:].tolist()  # after the header
    keys = {key: value for key, location, _, value in numbers if location == 0}
    epsg = keys.get(PROJECTED, keys.get(GEOGRAPHIC, USER_DEFINED))
    if TRANSFORMATION in tags:
        a, b, _, c, d, e, _, f = tags[TRANSFORMATION][:8]
    elif SCALE in tags and len(tags.get(TIE_POINTS, ())) == 6:
        (x, y, _, east, north, _), (width, height, _) = tags[TIE_POINTS], tags[SCALE]
        a, b, c, d, e, f = width, 0.0, east - x * width, 0.0, -height, north + y * height
    else:
        return None, None
    shift = 0.5 if keys.get(RASTER_TYPE) == PIXEL_IS_POINT else 0.0
    affine = a, b, c - shift * (a + b), d, e, f - shift * (d + e)
    return affine, None if epsg in (0, USER_DEFINED) else f"EPSG:{epsg}"


def encode_geotiff(
    mask: Array,
    labels: LabelSet,
    holes: Bools | None = None,
    georeference: Georeference = (),
    provenance: Mapping[str, str] = {},
) -> bytes:
    """Return `mask` as an indexed TIFF, tiled, deflated, with the labels' colours. What `encode_mask` says of values
    goes here too; a pixel of `holes`, HW bool, has no data: the value of the first ignored label, or the highest that
    no label has."""
    values, palette = mask_values(mask, labels)
    free = [value for value in range(256) if value not in {label.value for label in labels.labels}]
    ignored = [label.value for label in labels.written_labels if label.ignore]
    tags = list(georeference)
    if provenance:
        tags.append((GDAL_METADATA, 2, 0, to_gdal_metadata(provenance), True))
    if nodata := ignored[:1] or free[-1:]:
        tags.append((NODATA, 2, 0, str(nodata[0]), True))
        if holes is not None:
            values = np.where(holes, np.uint8(nodata[0]), values)
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, : len(palette)] = palette.T.astype(np.uint16) * 257
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        values,
        photometric="palette",
        colormap=colormap,
        compression="deflate",
        tile=(TILE, TILE) if max(values.shape) > TILE else None,
        extratags=tags,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()
