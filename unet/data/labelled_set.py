"""A labelled set: pairs of image and mask, found by layout, split, and checked before anything starts.

Whatever is wrong with a file is said in one line that names the file and the remedy.
"""

import hashlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet.data.image import Array, ImageError, decode_mask, open_image, sixteen_bit_samples, to_rgb_picture
from unet.data.labels import IGNORE, LabelSet
from unet.data.layouts import Pair, Parts, pairs_of, parts_by_layout, summarize
from unet.data.settings import Part, SetSettings
from unet.settings import RequestError, Window
from unet.storage import store
from unet.storage.faults import Unreachable

T = TypeVar("T")
Samples = npt.NDArray[np.integer[Any]]

READERS = 16
"""Pairs that the check reads at a time: from a bucket it waits more than it works."""

SAMPLES_PER_IMAGE = 1024
"""Pixels of each 16-bit image that the window is chosen by: images count alike, whatever their size."""

WINDOW_PERCENTILES = (0.5, 99.5)
"""Percentiles of these pixels that become black and white."""

MAX_SIZES = 4
"""How many of the commonest sizes the table shows before it only counts them."""

LOG_INTERVAL = 5.0
"""Seconds between two lines about the progress of the check."""


@dataclass(frozen=True)
class LabelledSet:
    """Pairs to train on and pairs to validate on, each in order of key."""

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]


@dataclass
class SetStatistics:
    """What the check counted in the pairs that it read."""

    pixels: npt.NDArray[np.int64]
    """Pixels by class index, [C]."""
    ignored: int = 0
    """Pixels that are not scored."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Pairs by (height, width)."""
    samples: list[Samples] = field(default_factory=list)
    """Of each 16-bit grayscale image, `SAMPLES_PER_IMAGE` of its pixels."""

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each class in the valid pixels, [C]."""
        shares: npt.NDArray[np.float64] = self.pixels / max(1, self.pixels.sum())
        return shares

    def add(self, other: "SetStatistics") -> None:
        """Count what `other` counted too."""
        self.pixels += other.pixels
        self.ignored += other.ignored
        self.sizes += other.sizes
        self.samples += other.samples


def find_labelled_set(settings: SetSettings, folder: str | None = None) -> LabelledSet:
    """Return the set that `settings` names; `folder` stands in for --data.

    Raises:
        RequestError: no such folder, no known layout, no images, unpaired files, or nothing to validate on.
    """
    parts = _find_parts(settings, folder)
    train, val = parts["train"](), parts["val"]() if "val" in parts else ()
    if shared := {pair.image for pair in val} & {pair.image for pair in train}:
        raise RequestError(f"--val-data {settings.val_data}: {min(shared)} is a training image too; give another set")
    return LabelledSet(train, val) if val else _split(train, settings.val_fraction)


def find_part(settings: SetSettings, part: Part) -> LabelledSet:
    """Return a part of the set that `settings` names, and nothing of the other, which may be faulty. all: both parts,
    or a set without parts as it is.

    Raises:
        RequestError: as `find_labelled_set`, of the part alone.
    """
    parts = _find_parts(settings)
    if part != "all" and "val" not in parts:
        whole = _split(parts["train"](), settings.val_fraction)
        return LabelledSet(whole.train, ()) if part == "train" else LabelledSet((), whole.val)
    found = {name: find() if part in (name, "all") else () for name, find in parts.items()}
    return LabelledSet(found["train"], found.get("val", ()))


def _find_parts(settings: SetSettings, folder: str | None = None) -> Parts:
    if settings.images is not None and settings.masks is not None:
        store.check_readable(settings.images, "--images")
        store.check_readable(settings.masks, "--masks")
        parts: Parts = {"train": partial(pairs_of, settings.images, settings.masks)}
    else:
        parts = parts_by_layout(folder or settings.data or "", "--data")
    if settings.val_data is not None:
        given = parts_by_layout(settings.val_data, "--val-data")
        parts["val"] = given.get("val", given["train"])
    return parts


def read_pair(pair: Pair, labels: LabelSet, *, window: Window | None = None) -> tuple[Image.Image, Array]:
    """Return image (Pillow's, RGB) and mask (HW uint8 class indices), of one size.

    Raises:
        ImageError: names the file, what is wrong with it and the remedy.
    """
    image = _read_file(pair.image, lambda data: to_rgb_picture(open_image(data), window))
    return image, _read_mask_of(image, pair, labels)


def read_mask(uri: str, labels: LabelSet) -> Array:
    """Return the class indices, HW uint8, of a mask file.

    Raises:
        ImageError: names the file, what is wrong with it and the remedy.
    """
    return _read_file(uri, lambda data: decode_mask(data, labels))


def choose_window(statistics: tuple[SetStatistics, SetStatistics]) -> Window | None:
    """Return the window that suits the 16-bit images that the check has read; None if there are none."""
    samples = [drawn for part in statistics for drawn in part.samples]
    if not samples:
        return None
    low, high = np.percentile(np.concatenate(samples), WINDOW_PERCENTILES)
    return math.floor(low), max(math.ceil(high), math.floor(low) + 1)


def check_labelled_set(
    labelled: LabelledSet, labels: LabelSet, limit: int, log: Callable[[str], None]
) -> tuple[SetStatistics, SetStatistics]:
    """Read every pair, or a random sample of `limit`, and return the statistics of training and validation part.

    `log` is called with lines about its progress.

    Raises:
        RequestError: names the first faulty files, with remedies.
    """
    numbered = [(pair, 0) for pair in labelled.train] + [(pair, 1) for pair in labelled.val]
    if len(numbered) > limit:
        numbered = random.Random(0).sample(numbered, limit)
    train, val = (SetStatistics(np.zeros(len(labels.classes), np.int64)) for _ in range(2))
    faults = []
    logged = time.monotonic()
    with ThreadPoolExecutor(READERS) as pool:
        results = pool.map(lambda item: _statistics_of(item[0], labels), numbered)
        for done, ((_, part), result) in enumerate(zip(numbered, results, strict=True), 1):
            if isinstance(result, ImageError):
                faults.append(str(result))
            else:
                (train, val)[part].add(result)
            if time.monotonic() - logged > LOG_INTERVAL:
                logged = time.monotonic()
                log(f"check: {done} of {len(numbered)} pairs read")
    if faults:
        more = f" (and {len(faults) - 1} more such files: {summarize(faults[1:])})" if len(faults) > 1 else ""
        raise RequestError(faults[0] + more)
    for name, pairs, statistics in (("training", labelled.train, train), ("validation", labelled.val, val)):
        if pairs and statistics.sizes.total() == len(pairs) and not statistics.pixels.any():
            raise RequestError(f"the {name} masks hold no pixel of any class; is --classes the right label set?")
    return train, val


def statistics_table(
    labelled: LabelledSet,
    labels: LabelSet,
    statistics: tuple[SetStatistics, SetStatistics],
    window: Window | None = None,
) -> str:
    """Return the table of what the check counted, as it is printed, with a column for each part that there is.
    `window`: of 16-bit images."""
    found = zip(("train", "val"), (labelled.train, labelled.val), statistics, strict=True)
    names, pairs, parts = zip(*(column for column in found if column[1]), strict=True)
    lines = [_row("", *names), _row("pairs", *map(len, pairs))]
    read = [part.sizes.total() for part in parts]
    if sum(read) < sum(map(len, pairs)):
        lines.append(_row("of them read", *read))
    sizes = [*zip_longest(*(part.sizes.most_common() for part in parts))]
    for place, both in enumerate(sizes[:MAX_SIZES]):
        cells = (f"{_format_size(counted[0])}: {counted[1]}" if counted else "" for counted in both)
        lines.append(_row("" if place else "height x width", *cells))
    if len(sizes) > MAX_SIZES:
        lines.append(f"{'':16}... {len(sizes) - MAX_SIZES} more sizes")
    if any(part.samples for part in parts):
        lines.append(_row("16-bit images", *(len(part.samples) for part in parts)))
    if window is not None:
        lines.append(_row("window", f"{window[0]} to {window[1]}"))
    for index, name in enumerate(labels.names):
        shares = [part.shares[index] for part in parts]
        note = "   no pixel to learn it from" if names[0] == "train" and not shares[0] else ""
        lines.append(_row(name, *(f"{share:.1%}" for share in shares)) + note)
    ignored = (part.ignored / max(1, part.ignored + part.pixels.sum()) for part in parts)
    return "\n".join((*lines, _row("(ignored)", *(f"{share:.1%}" for share in ignored))))


def _row(name: str, *cells: object) -> str:
    return f"{name[:15]:16}" + "".join(f"{cell!s:>16}" for cell in cells)


def _split(pairs: tuple[Pair, ...], fraction: float) -> LabelledSet:
    def is_val(pair: Pair) -> bool:
        return int.from_bytes(hashlib.sha256(pair.key.encode()).digest()[:8]) < fraction * 2**64

    val = tuple(pair for pair in pairs if is_val(pair))
    train = tuple(pair for pair in pairs if not is_val(pair))
    if not val or not train:
        raise RequestError(
            f"--val-fraction {fraction} of {len(pairs)} pairs leaves {len(train)} to train and {len(val)} to validate "
            "on; change it, add pairs or give --val-data"
        )
    return LabelledSet(train, val)


def _statistics_of(pair: Pair, labels: LabelSet) -> SetStatistics | ImageError:
    """Return the statistics of one pair, or what is wrong with it."""
    try:
        samples, image = _read_file(pair.image, _decode_with_samples)
        mask = _read_mask_of(image, pair, labels)
    except ImageError as error:
        return error
    counts = np.bincount(mask.ravel(), minlength=256)
    sizes = Counter([(mask.shape[0], mask.shape[1])])
    return SetStatistics(counts[: len(labels.classes)], int(counts[IGNORE]), sizes, samples)


def _decode_with_samples(data: bytes) -> tuple[list[Samples], Image.Image]:
    """Return an image, and of a 16-bit one a random sample of its pixels, drawn before the image is turned."""
    picture = open_image(data)
    return _draw_samples(picture), to_rgb_picture(picture)


def _draw_samples(picture: Image.Image) -> list[Samples]:
    samples = sixteen_bit_samples(picture)
    return [] if samples is None else [np.random.default_rng(0).choice(samples.ravel(), SAMPLES_PER_IMAGE)]


def _read_mask_of(image: Image.Image, pair: Pair, labels: LabelSet) -> Array:
    mask = read_mask(pair.mask, labels)
    size = (image.height, image.width)
    if size != mask.shape:
        raise ImageError(
            f"{pair.mask}: the mask has {_format_size(mask.shape)} pixels, its image {pair.image} has "
            f"{_format_size(size)}; export both at one size"
        )
    return mask


def _read_file(uri: str, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(store.read(uri))
    except ImageError as error:
        raise ImageError(f"{uri}: {error}") from None
    except Unreachable:
        raise  # says nothing of the file
    except OSError as error:
        raise ImageError(f"{uri}: cannot be read ({error.strerror})") from None


def _format_size(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
