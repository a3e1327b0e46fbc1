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
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet.data.image import Array, ImageError, decode_mask, decode_picture, wide_samples
from unet.data.labels import IGNORE, LabelSet
from unet.data.layouts import Pair, pairs_by_layout, pairs_of, some
from unet.data.settings import DataSettings
from unet.settings import RequestError, Window
from unet.storage import store
from unet.storage.faults import Unreachable

__all__ = [
    "LabelledSet",
    "Pair",
    "SetStatistics",
    "check",
    "describe",
    "find_labelled_set",
    "read_mask",
    "read_pair",
    "window_of",
]

T = TypeVar("T")

READERS = 16
"""Pairs that the check reads at a time: from a bucket it waits more than it works."""

SAMPLES = 1024
"""Pixels of each 16-bit image that the window is chosen by: images count alike, whatever their size."""

TAILS = (0.5, 99.5)
"""Percentiles of these that become black and white."""

SIZES_SHOWN = 3
"""How many of the commonest sizes the table shows before it only counts them."""


@dataclass(frozen=True)
class LabelledSet:
    """Pairs to train on and pairs to validate on, each in order of key."""

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]


@dataclass
class SetStatistics:
    """What the check saw in one part of a set."""

    pixels: npt.NDArray[np.int64]
    """Pixels by class index, [C]."""
    ignored: int = 0
    """Pixels that are not scored."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Pairs read, by (height, width)."""
    samples: list[npt.NDArray[np.integer[Any]]] = field(default_factory=list)
    """Of each 16-bit grayscale image, `SAMPLES` of its pixels."""

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each class in the valid pixels, [C]."""
        shares: npt.NDArray[np.float64] = self.pixels / max(1, self.pixels.sum())
        return shares


def find_labelled_set(settings: DataSettings, folder: str | None = None) -> LabelledSet:
    """The set that `settings` names; `folder` stands in for --data.

    Raises:
        RequestError: no such folder, no known layout, no images, unpaired files, or nothing to validate on.
    """
    if settings.images is not None and settings.masks is not None:
        store.check_readable(settings.images, "--images")
        store.check_readable(settings.masks, "--masks")
        train, val = pairs_of(settings.images, settings.masks), tuple[Pair, ...]()
    else:
        train, val = pairs_by_layout(folder or settings.data or "", "--data")
    if settings.val_data is not None:
        part = pairs_by_layout(settings.val_data, "--val-data")
        val = part[1] or part[0]
        if shared := {pair.image for pair in val} & {pair.image for pair in train}:
            raise RequestError(
                f"--val-data {settings.val_data}: {min(shared)} is a training image too; give another set"
            )
    if not val:
        train, val = _split(train, settings.val_fraction)
    return LabelledSet(train, val)


def read_pair(pair: Pair, labels: LabelSet, *, window: Window | None = None) -> tuple[Image.Image, Array]:
    """Image (Pillow's, RGB) and mask (HW uint8 class indices), of one size.

    Raises:
        ImageError: names the file, what is wrong with it and the remedy.
    """
    image = _decode(pair.image, lambda data: decode_picture(data, window=window))
    return image, _mask_of(image, pair, labels)


def read_mask(uri: str, labels: LabelSet) -> Array:
    """HW uint8 class indices of a mask file.

    Raises:
        ImageError: names the file, what is wrong with it and the remedy.
    """
    return _decode(uri, lambda data: decode_mask(data, labels))


def window_of(statistics: tuple[SetStatistics, SetStatistics]) -> Window | None:
    """The window that suits the 16-bit images that the check has read; None if there are none."""
    samples = [sampled for part in statistics for sampled in part.samples]
    if not samples:
        return None
    low, high = np.percentile(np.concatenate(samples), TAILS)
    return math.floor(low), max(math.ceil(high), math.floor(low) + 1)


def check(
    labelled: LabelledSet, labels: LabelSet, limit: int, say: Callable[[str], None]
) -> tuple[SetStatistics, SetStatistics]:
    """Reads every pair, or a random sample of `limit`, and counts what is in them; `say` is told of progress.

    Returns the statistics of the training and of the validation part.

    Raises:
        RequestError: the first faulty files, with remedies.
    """
    marked = [(pair, False) for pair in labelled.train] + [(pair, True) for pair in labelled.val]
    if len(marked) > limit:
        marked = random.Random(0).sample(marked, limit)
    parts = tuple(SetStatistics(np.zeros(len(labels.classes), np.int64)) for _ in range(2))
    faults = []
    said = time.monotonic()
    with ThreadPoolExecutor(READERS) as pool:
        looks = pool.map(lambda item: _look(item[0], labels), marked)
        for done, ((_, is_val), seen) in enumerate(zip(marked, looks, strict=True), 1):
            if isinstance(seen, ImageError):
                faults.append(str(seen))
            else:
                size, counts, samples = seen
                part = parts[is_val]
                part.sizes[size] += 1
                part.pixels += counts[: len(part.pixels)]
                part.ignored += int(counts[IGNORE])
                part.samples += samples
            if time.monotonic() - said > 5:
                said = time.monotonic()
                say(f"check: {done} of {len(marked)} pairs read")
    if faults:
        more = f" (and {len(faults) - 1} more such files: {some(faults[1:])})" if len(faults) > 1 else ""
        raise RequestError(faults[0] + more)
    for name, pairs, part in (("training", labelled.train, parts[0]), ("validation", labelled.val, parts[1])):
        if part.sizes.total() == len(pairs) and not part.pixels.any():
            raise RequestError(f"the {name} masks hold no pixel of any class; is --classes the right label set?")
    return parts[0], parts[1]


def describe(
    labelled: LabelledSet,
    labels: LabelSet,
    statistics: tuple[SetStatistics, SetStatistics],
    window: Window | None = None,
) -> str:
    """The table that the check prints. `window`: of 16-bit images."""
    lines = [f"{'':16}{'train':>16}{'val':>16}", f"{'pairs':16}{len(labelled.train):16}{len(labelled.val):16}"]
    read = tuple(sum(part.sizes.values()) for part in statistics)
    if sum(read) < len(labelled.train) + len(labelled.val):
        lines.append(f"{'of them read':16}{read[0]:16}{read[1]:16}")
    for place in range(max(len(part.sizes) for part in statistics)):
        sizes = [part.sizes.most_common() for part in statistics]
        shown = [f"{_by(s[place][0])}: {s[place][1]}" if place < len(s) else "" for s in sizes]
        lines.append(f"{'height x width' if not place else '':16}" + "".join(f"{text:>16}" for text in shown))
        if place == SIZES_SHOWN:
            lines.append(f"{'':16}... {max(map(len, sizes)) - place - 1} more sizes")
            break
    if any(part.samples for part in statistics):
        lines.append(f"{'16-bit images':16}" + "".join(f"{len(part.samples):16}" for part in statistics))
    if window is not None:
        lines.append(f"{'window':16}{f'{window[0]} to {window[1]}':>16}")
    for index, name in enumerate(labels.names):
        shares = [part.shares[index] for part in statistics]
        note = "" if shares[0] else "   no pixel to learn it from"
        lines.append(f"{name[:15]:16}" + "".join(f"{share:16.1%}" for share in shares) + note)
    ignored = [part.ignored / max(1, part.ignored + part.pixels.sum()) for part in statistics]
    lines.append(f"{'(ignored)':16}" + "".join(f"{share:16.1%}" for share in ignored))
    return "\n".join(lines)


def _split(pairs: tuple[Pair, ...], fraction: float) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    def is_val(pair: Pair) -> bool:
        return int.from_bytes(hashlib.sha256(pair.key.encode()).digest()[:8]) < fraction * 2**64

    val = tuple(pair for pair in pairs if is_val(pair))
    train = tuple(pair for pair in pairs if not is_val(pair))
    if not val or not train:
        raise RequestError(
            f"--val-fraction {fraction} of {len(pairs)} pairs leaves {len(train)} to train and {len(val)} to validate "
            "on; change it, add pairs or give --val-data"
        )
    return train, val


_Seen = tuple[tuple[int, int], npt.NDArray[np.int64], list[npt.NDArray[np.integer[Any]]]]
"""Height and width, pixels by class index, and samples of a 16-bit image."""


def _look(pair: Pair, labels: LabelSet) -> _Seen | ImageError:
    try:
        image, samples = _decode(pair.image, lambda data: (decode_picture(data), _sampled(data)))
        mask = _mask_of(image, pair, labels)
    except ImageError as error:
        return error
    return (mask.shape[0], mask.shape[1]), np.bincount(mask.ravel(), minlength=256), samples


def _sampled(data: bytes) -> list[npt.NDArray[np.integer[Any]]]:
    samples = wide_samples(data)
    return [] if samples is None else [np.random.default_rng(0).choice(samples.ravel(), SAMPLES)]


def _mask_of(image: Image.Image, pair: Pair, labels: LabelSet) -> Array:
    mask = read_mask(pair.mask, labels)
    size = (image.height, image.width)
    if size != mask.shape:
        raise ImageError(
            f"{pair.mask}: the mask has {_by(mask.shape)} pixels, its image {pair.image} has {_by(size)}; "
            "export both at one size"
        )
    return mask


def _decode(uri: str, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(store.read(uri))
    except ImageError as error:
        raise ImageError(f"{uri}: {error}") from None
    except Unreachable:
        raise  # says nothing of the file
    except OSError as error:
        raise ImageError(f"{uri}: cannot be read ({error.strerror})") from None


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
