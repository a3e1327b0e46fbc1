"""Images of other projects' test suites, decoded by us and by others: `python -m tests.corpus FOLDER...`.

OpenCV, libvips (pip install opencv-python-headless pyvips pyvips-binary) and tifffile decode each file too. Printed are
files that we decode to other pixels than two of them agree on, by a mean difference over 2 of 255, and those that one
of them reads and we call no image. Which suites there are says tests/README.md; they are fetched by whoever runs this.
"""

import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageOps

from unet.data.image import ImageError, is_deep, open_image
from unet.data.planes import read_array

Pixels = npt.NDArray[Any]

MOST = 2.0
"""Mean difference of two decoders that agree, of 255."""

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"),
    *(".avif", ".jp2", ".j2k", ".jpx", ".heic", ".heif", ".apng", ".dib", ".btf", ".ptif"),
}


def by_opencv(data: bytes) -> Pixels | None:
    import cv2

    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if decoded is None else decoded[..., ::-1]


def by_libvips(data: bytes) -> Pixels | None:
    import pyvips

    image = pyvips.Image.new_from_buffer(data, "").autorot()
    image = image.colourspace("srgb") if image.bands < 3 or image.interpretation != "srgb" else image
    pixels = np.asarray(image.extract_band(0, n=min(3, image.bands)).cast("uchar").numpy())
    return np.repeat(pixels.reshape(*pixels.shape[:2], -1), 3 // min(3, image.bands), axis=2)


def by_tifffile(data: bytes) -> Pixels | None:
    page = tifffile.TiffFile(io.BytesIO(data)).pages.first
    if page.dtype != np.uint8 or page.photometric not in (1, 2) or page.bitspersample != 8:
        return None
    pixels = page.asarray()
    if page.planarconfig == 2 and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    return (
        pixels[..., :3] if page.samplesperpixel > 2 else np.repeat(pixels.reshape(*pixels.shape[:2], -1)[..., :1], 3, 2)
    )


OTHERS: dict[str, Callable[[bytes], Pixels | None]] = {
    "OpenCV": by_opencv,
    "libvips": by_libvips,
    "tifffile": by_tifffile,
}


def decode_by_others(data: bytes) -> dict[str, Pixels]:
    """Return what others make of a file: those that can read it."""
    found = {}
    for name, decode in OTHERS.items():
        try:
            pixels = decode(data)
        except Exception:  # whatever it raises, it does not read this one
            continue
        if pixels is not None and pixels.ndim == 3 and pixels.shape[2] == 3:
            found[name] = pixels
    return found


def agree(first: Pixels, second: Pixels) -> bool:
    """Return whether two decoders have made the same of a file."""
    if first.shape != second.shape:
        return False
    return bool(np.abs(first.astype(np.int16) - second.astype(np.int16)).mean() <= MOST)


def verdict(data: bytes) -> tuple[str, str]:
    """Return a verdict of one word, and the reason."""
    others = decode_by_others(data)
    try:
        picture = open_image(data)
        if is_deep(picture):
            return "deep", "a window says what its samples become"
        ours, _ = read_array(picture)
    except ImageError as error:
        if others and "is not an image" in str(error):
            return "unnamed", f"{', '.join(others)} read it, and we say: {error}"
        return "refused", str(error)
    seen = visible(data)
    if seen is not None and seen.shape == ours.shape[:2]:  # transparent colours are anyone's
        ours = ours * seen[..., None]
        others = {name: pixels * seen[..., None] for name, pixels in others.items() if pixels.shape == ours.shape}
    names = list(others)
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :] if agree(others[a], others[b])]
    if not pairs:
        return "alone" if not others else "disputed", ""
    if any(agree(ours, others[name]) for name in {name for pair in pairs for name in pair}):
        return "right", ""
    return "wrong", f"{' and '.join(pairs[0])} agree on other pixels"


def visible(data: bytes) -> npt.NDArray[np.bool_] | None:
    """Return which pixels are not wholly transparent, HW; None if it has no transparency."""
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        return np.asarray(picture.convert("RGBA"))[..., 3] > 0 if picture.has_transparency_data else None
    except Exception:  # read by others alone
        return None


def files_of(folders: list[str]) -> Iterator[Path]:
    for folder in folders:
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file() and file.suffix.lower() in SUFFIXES:
                yield file


def main() -> None:
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for file in files_of(sys.argv[1:]):
        word, why = verdict(file.read_bytes())
        counts[word] += 1
        if word in ("wrong", "unnamed"):
            print(f"{word}: {file}: {why}", flush=True)
        elif word == "refused":
            reasons[why.split(":")[0][:60]] += 1
    print(f"{counts.total()} files: {dict(sorted(counts.items()))}")
    for why, count in reasons.most_common():
        print(f"{count:>6} refused: {why}")


if __name__ == "__main__":
    main()
