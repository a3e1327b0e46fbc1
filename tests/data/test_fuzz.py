"""Two thousand damaged images through the decode step: each an image of its own size, or a reason; nothing else."""

import io
import random
import resource
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_pair
from unet.data.image import ImageError, encode_image, open_image, to_rgb_array, to_rgb_picture
from unet.data.planes import decode_image

MAX_PIXELS = 1 << 22
GROWTH = 400 << 20
"""Bytes of memory that decoding may need beside what the process has: several copies of the largest image."""


def originals() -> dict[str, bytes]:
    """One small image of each format, and of the modes that take other paths."""
    picture = Image.fromarray(make_pair(0, (37, 53))[0])
    made = {}
    for name, kind, mode in (
        ("png", "PNG", "RGB"),
        ("palette.png", "PNG", "P"),
        ("alpha.png", "PNG", "LA"),
        ("jpg", "JPEG", "RGB"),
        ("cmyk.jpg", "JPEG", "CMYK"),
        ("bmp", "BMP", "RGB"),
        ("gif", "GIF", "P"),
        ("tif", "TIFF", "RGB"),
        ("webp", "WEBP", "RGB"),
        ("ppm", "PPM", "RGB"),
    ):
        file = io.BytesIO()
        options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
        picture.convert(mode).save(file, kind, **options)
        made[name] = file.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    made["turned.jpg"] = file.getvalue()
    return made


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 20)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def hostile_header(data: bytes, rng: random.Random) -> bytes:
    """Numbers of the header set to extremes."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(max(1, min(len(changed), 120) - 4))
        changed[place : place + 4] = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, rng.randbytes(4)])
    return bytes(changed)


def spliced(data: bytes, rng: random.Random) -> bytes:
    """The beginning of one format and the end of another, or a piece twice."""
    other = rng.choice(list(originals().values()))
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def claimed(data: bytes, rng: random.Random) -> bytes:
    """A PNG that claims another size, its header's checksum corrected."""
    if not data.startswith(b"\x89PNG"):
        return hostile_header(data, rng)
    size = struct.pack(">II", rng.choice([0, 1, 54, 5000, 2**31 - 1]), rng.choice([0, 1, 38, 5000, 2**31 - 1]))
    header = b"IHDR" + size + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (truncated, flipped, hostile_header, spliced, claimed)


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on what it reads
def test_every_damaged_image_is_decoded_to_its_own_size_or_refused_with_a_reason() -> None:
    rng = random.Random(0)
    images = list(originals().values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons: list[str] = []
    for number in range(2000):
        data = MUTATIONS[number % len(MUTATIONS)](rng.choice(images), rng)
        try:
            picture = open_image(data, max_pixels=MAX_PIXELS)
            height, width = picture.height, picture.width
            image = to_rgb_array(picture)
        except ImageError as error:
            reasons.append(str(error))
        else:
            assert image.shape in ((height, width, 3), (width, height, 3))
            assert image.dtype == np.uint8
    assert 500 < len(reasons) < 1800
    assert all(reason and reason.isprintable() for reason in reasons)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH


@pytest.mark.filterwarnings("ignore")
def test_a_region_of_a_damaged_image_is_decoded_or_refused_with_a_reason() -> None:
    rng = random.Random(1)
    images = list(originals().values())
    reasons: list[str] = []
    for number in range(1000):
        data = MUTATIONS[number % len(MUTATIONS)](rng.choice(images), rng)
        try:
            part = to_rgb_picture(open_image(data, max_pixels=MAX_PIXELS), region=(3, 5, 30, 20))
            assert (part.mode, part.size) == ("RGB", (27, 15))
        except ImageError as error:
            reasons.append(str(error))
    assert 100 < len(reasons) < 900
    assert all(reason and reason.isprintable() for reason in reasons)


def test_the_originals_are_decoded() -> None:
    sizes = {name: decode_image(data).shape for name, data in originals().items()}
    assert sizes.pop("turned.jpg") == (53, 37, 3)
    assert set(sizes.values()) == {(37, 53, 3)}
    assert decode_image(encode_image(make_pair(0)[0])).shape == (40, 56, 3)
