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

GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737)
"""Tags: scale, tie points, transformation, and the keys with their numbers and texts (OGC GeoTIFF 1.1)."""

TILE = 256
"""Height and width [pixels]: what GDAL makes."""

Georeference = tuple[tuple[int, int, int, Any, bool], ...]
"""Tags as tifffile writes them: code, type, count, value, and that only the first page has them."""


def georeference_of(picture: Image.Image) -> Georeference:
    """Return where an opened image lies on Earth; nothing if it does not say, or is turned when displayed."""
    if not isinstance(picture, TiffPicture) or orientation_of(picture) != 1:
        return ()
    return tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in picture.tags(GEOREFERENCE))


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
