"""What the file of a mask says of itself: in text chunks of a PNG, in GDAL's metadata of a TIFF.

Nothing of it is of one run: two runs with the same settings write the same bytes.
"""

import html
import re
from collections.abc import Mapping
from xml.etree import ElementTree

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unet.data.labels import LabelSet
from unet.data.tiff import TiffPicture

Provenance = Mapping[str, str]
"""Texts by name: fingerprint, model-digest, classes."""

PNG_PREFIX, GDAL_PREFIX = "unet:", "unet_"
"""What the names begin with in a file; GDAL cuts names at a colon."""

MAX_CLASSES = 1024
"""Bytes of the list of classes; a longer one is left out of each mask: model.json has it."""

GDAL_METADATA = 42112
"""Tag of a TIFF with GDAL's metadata, as XML."""


def provenance_of(fingerprint: str, model_digest: str, labels: LabelSet) -> Provenance:
    """Return what masks of a model and settings say of themselves."""
    classes = ",".join(f"{label.value}={label.name}" for label in labels.classes)
    said = {"fingerprint": fingerprint, "model-digest": model_digest}
    return said | ({"classes": classes} if len(classes.encode()) <= MAX_CLASSES and classes.isprintable() else {})


def to_png(provenance: Provenance) -> PngInfo:
    """Return text chunks: tEXt, or iTXt where a text is not Latin-1."""
    chunks = PngInfo()
    for name, text in provenance.items():
        chunks.add_text(f"{PNG_PREFIX}{name}", text)
    return chunks


def to_gdal_metadata(provenance: Provenance) -> bytes:
    """Return the value of GDAL_METADATA, in ASCII."""
    root = ElementTree.Element("GDALMetadata")
    for name, text in provenance.items():
        ElementTree.SubElement(root, "Item", name=f"{GDAL_PREFIX}{name}").text = text
    return ElementTree.tostring(root)


def read_provenance(picture: Image.Image) -> Provenance:
    """Return what a mask says of itself, from the opened file; {} if that is nothing."""
    if isinstance(picture, TiffPicture):
        xml = "".join(str(tag.value) for tag in picture.tags((GDAL_METADATA,)))
        texts = re.findall(rf'<Item name="{GDAL_PREFIX}([^"]*)">([^<]*)<', xml)
        return {name: html.unescape(text) for name, text in texts}
    own = [name for name in picture.info if isinstance(name, str) and name.startswith(PNG_PREFIX)]
    return {name.removeprefix(PNG_PREFIX): str(picture.info[name]) for name in own}
