"""What Pillow makes less of a PNG than there is: one with damaged chunks, and colours of 16 bits."""

import struct
import zlib
from typing import IO, Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def without_damaged_chunks(file: IO[bytes]) -> bytes | None:
    """Return a PNG without the damaged ones of its ancillary chunks, those that pixels do not depend on; None if there
    are none, or it is no PNG."""
    file.seek(0)
    data, place = file.read(), len(SIGNATURE)
    kept, damaged = [SIGNATURE], False
    while data.startswith(SIGNATURE) and place + 12 <= len(data):
        end = place + 12 + struct.unpack_from(">I", data, place)[0]
        chunk, place = data[place:end], end
        is_ancillary = bool(chunk[4] & 32)
        if is_ancillary and zlib.crc32(chunk[4:-4]).to_bytes(4) != chunk[-4:]:
            damaged = True
        else:
            kept.append(chunk)
    return b"".join(kept) if damaged else None


def is_deep_colour(picture: Image.Image, *, or_alpha: bool = False) -> bool:
    """Return whether an opened image, its pixels not decoded, is a PNG in colours of 16 bits, of which Pillow gives the
    high byte; `or_alpha`: or in gray of as many with alpha, of which it does too."""
    tiles = picture.tile if isinstance(picture, PngImagePlugin.PngImageFile) else []
    return bool(tiles) and tiles[0].args in ("RGB;16B", "RGBA;16B", *["LA;16B"] * or_alpha)


def sixteen_bit_samples(picture: Image.Image) -> npt.NDArray[Any]:
    """Return the samples of a PNG in colours of 16 bits, opened, as stored, HWC. Raise ValueError: damaged."""
    assert isinstance(picture, PngImagePlugin.PngImageFile)
    assert picture.fp is not None
    picture.fp.seek(0)
    data = picture.fp.read()
    try:
        return np.asarray(imagecodecs.png_decode(data))
    except RuntimeError as error:
        raise ValueError(str(error)) from None
