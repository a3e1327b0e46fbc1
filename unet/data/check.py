"""The check of a labelled set: every pair is read before anything is trained or scored, and what is seen is counted."""

import hashlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unet.data.image import DamagedError, ImageError
from unet.data.labelled_set import LabelledSet, orient
from unet.data.labels import IGNORE, LabelSet
from unet.data.layouts import summarize
from unet.data.mask import is_read_by_colors
from unet.data.open_pair import OpenPair, UndecidedOrientationError, open_pairs, pixels_of
from unet.data.prefetch import prefetch
from unet.data.settings import MaskOrientation
from unet.settings import RequestError, Window
from unet.storage import store
from unet.storage.faults import Vanished

DECODERS = 16
"""Pairs that the check decodes at a time, at most."""

DECODED_PIXELS = 1 << 27
"""Pixels of these pairs, at most; a larger pair is decoded alone. Pillow takes up to four bytes for each."""

CACHE_FORMAT = 2
"""Of what the check leaves for the next one."""

SAMPLES_PER_IMAGE = 1024
"""Pixels of each 16-bit image that the window is chosen by: images count alike, whatever their size."""

WINDOW_PERCENTILES = (0.5, 99.5)
"""Percentiles of these pixels that become black and white."""

MAX_SIZES = 4
"""How many of the commonest sizes the table shows before it only counts them."""

LOG_INTERVAL = 5.0
"""Seconds between two lines about the progress of the check."""


@dataclass
class SetStatistics:
    """What the check counted in the pairs that it read."""

    pixels: npt.NDArray[np.int64]
    """Pixels by class index, [C]."""
    ignored: int = 0
    """Pixels that are not scored."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Pairs by (height, width)."""
    sixteen_bit: int = 0
    """16-bit images."""
    by_color: int = 0
    """Masks with a palette that are read by its colours."""
    turned: Counter[str] = field(default_factory=Counter)
    """Images that EXIF turns, by how their masks lie: displayed, stored, or auto where that is not known."""
    damaged: dict[str, str] = field(default_factory=dict)
    """What is wrong with pairs that are left out, by the URIs of their images."""
    samples: Counter[int] = field(default_factory=Counter)
    """How often each value occurs in `SAMPLES_PER_IMAGE` pixels of each of them."""

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
        self.sixteen_bit += other.sixteen_bit
        self.by_color += other.by_color
        self.turned += other.turned
        self.damaged |= other.damaged
        self.samples += other.samples

    def to_json(self) -> dict[str, Any]:
        """Return the counts for a file."""
        return {
            "pixels": self.pixels.tolist(),
            "ignored": self.ignored,
            "sizes": [[*size, count] for size, count in self.sizes.items()],
            "sixteen_bit": self.sixteen_bit,
            "by_color": self.by_color,
            "turned": dict(self.turned),
            "damaged": self.damaged,
            "samples": sorted(self.samples.items()),
        }

    @classmethod
    def from_json(cls, counts: dict[str, Any]) -> "SetStatistics":
        """Return the counts of which `to_json` returned `counts`."""
        return cls(
            np.array(counts["pixels"], np.int64),
            counts["ignored"],
            Counter({(height, width): count for height, width, count in counts["sizes"]}),
            counts["sixteen_bit"],
            counts["by_color"],
            Counter(counts["turned"]),
            counts["damaged"],
            Counter(dict(counts["samples"])),
        )


def choose_window(statistics: tuple[SetStatistics, SetStatistics]) -> Window | None:
    """Return the window that suits the 16-bit images that the check has read; None if there are none."""
    samples = statistics[0].samples + statistics[1].samples
    if not samples:
        return None
    low, high = np.percentile(np.repeat(list(samples), list(samples.values())), WINDOW_PERCENTILES)
    return math.floor(low), max(math.ceil(high), math.floor(low) + 1)


def check_labelled_set(
    labelled: LabelledSet,
    labels: LabelSet,
    limit: int,
    log: Callable[[str], None],
    cache: str | None = None,
    skip_damaged: float = 0.0,
) -> tuple[SetStatistics, SetStatistics]:
    """Read every pair, or a random sample of `limit`, and return the statistics of training and validation part.

    Of all pairs, which then are read, a share of `skip_damaged` may be damaged.

    `log` is called with lines about its progress. `cache` is a file, which need not exist: what was counted in the same
    files, by their sizes and etags, is taken from there in place of the files, and put there where nothing is wrong.

    Raises:
        RequestError: names the first faulty files, with remedies.
    """
    if not all(etag for pair in labelled.train + labelled.val for etag in pair.etags):
        cache = None  # a server that gives none
    digest = _digest_of_check(labelled, labels, limit, skip_damaged)
    if cache is not None and (known := _read_cache(cache, digest)) is not None:
        log("check: the files are those of the last check, which found nothing wrong")
        return known
    train, val = _count_pairs(labelled, labels, limit, skip_damaged, log)
    for name, pairs, statistics in (("training", labelled.train, train), ("validation", labelled.val, val)):
        if pairs and statistics.sizes.total() == len(pairs) and not statistics.pixels.any():
            raise RequestError(f"the {name} masks hold no pixel of any class; is --classes the right label set?")
    if cache is not None:
        counts = {"format": CACHE_FORMAT, "digest": digest, "train": train.to_json(), "val": val.to_json()}
        store.write(cache, json.dumps(counts).encode())
    return train, val


def apply_check(labelled: LabelledSet, statistics: tuple[SetStatistics, SetStatistics]) -> LabelledSet:
    """Return the set without its damaged pairs, and with the orientation of masks where EXIF turns their images.

    Raises:
        RequestError: the check has not found how they lie.
    """
    damaged = statistics[0].damaged | statistics[1].damaged
    parts = ((pair for pair in part if pair.image not in damaged) for part in (labelled.train, labelled.val))
    labelled = LabelledSet(*map(tuple, parts))
    turned = statistics[0].turned + statistics[1].turned
    found: list[MaskOrientation] = [lie for lie in ("displayed", "stored") if turned[lie]]
    if turned["auto"] and len(found) != 1:
        why = "the sizes of some say one, of others the other" if found else "no size says"
        raise RequestError(
            f"{turned['auto']} images are turned by EXIF, and {why} whether their masks are turned with them; give "
            "--mask-orientation stored or displayed"
        )
    return orient(labelled, found[0]) if len(found) == 1 else labelled


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
    if any(part.sixteen_bit for part in parts):
        lines.append(_row("16-bit images", *(part.sixteen_bit for part in parts)))
    if any(part.damaged for part in parts):
        lines.append(_row("left out", *(len(part.damaged) for part in parts)) + "   damaged")
    for lie in ("displayed", "stored"):
        if any(part.turned[lie] for part in parts):
            lines.append(_row(f"turned, {lie}"[:15], *(part.turned[lie] for part in parts)) + "   by EXIF; masks")
    if any(part.by_color for part in parts):
        lines.append(_row("read by colour", *(part.by_color for part in parts)) + "   masks: other order of palette")
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


def _count_pairs(
    labelled: LabelledSet, labels: LabelSet, limit: int, skip_damaged: float, log: Callable[[str], None]
) -> tuple[SetStatistics, SetStatistics]:
    numbered = [(pair, 0) for pair in labelled.train] + [(pair, 1) for pair in labelled.val]
    if len(numbered) > limit and not skip_damaged:
        numbered = random.Random(0).sample(numbered, limit)
    train, val = (SetStatistics(np.zeros(len(labels.classes), np.int64)) for _ in range(2))
    faults = []
    logged = time.monotonic()
    opened = open_pairs([pair for pair, _ in numbered])
    count = partial(_statistics_of, labels)
    results = prefetch(count, opened, weight=pixels_of, budget=DECODED_PIXELS, threads=DECODERS)
    for done, ((pair, part), result) in enumerate(zip(numbered, results, strict=True), 1):
        if isinstance(result, DamagedError) and skip_damaged:
            (train, val)[part].damaged[pair.image] = str(result)
            log(f"left out: {result}")
        elif isinstance(result, ImageError):
            faults.append(str(result))
        else:
            (train, val)[part].add(result)
        if time.monotonic() - logged > LOG_INTERVAL:
            logged = time.monotonic()
            log(f"check: {done} of {len(numbered)} pairs read")
    damaged = [*train.damaged.values(), *val.damaged.values()]
    if len(damaged) > skip_damaged * len(numbered):
        share = f"--skip-damaged {skip_damaged:g} allows for fewer of {len(numbered)} pairs"
        faults += [f"{damaged[0]} ({share})", *damaged[1:]]
    if faults:
        more = f" (and {len(faults) - 1} more such files: {summarize(faults[1:])})" if len(faults) > 1 else ""
        raise RequestError(faults[0] + more)
    return train, val


def _statistics_of(labels: LabelSet, opened: OpenPair | ImageError) -> SetStatistics | ImageError:
    """Return the statistics of one pair, or what is wrong with it. Of image and mask one is decoded at a time."""
    if isinstance(opened, ImageError):
        return opened
    try:
        samples = opened.load_image()
        try:
            lies = opened.mask_orientation()
        except UndecidedOrientationError:
            lies = "auto"  # of which no pixel is another, and no size
            opened = replace(opened, pair=replace(opened.pair, mask_orientation="displayed"))
        mask = opened.decode_mask(labels)
    except ImageError as error:
        return error
    counts = np.array(Image.fromarray(mask).histogram())
    drawn = [] if samples is None else np.random.default_rng(0).choice(samples.ravel(), SAMPLES_PER_IMAGE).tolist()
    return SetStatistics(
        counts[: len(labels.classes)],
        int(counts[IGNORE]),
        sizes=Counter([(mask.shape[0], mask.shape[1])]),
        sixteen_bit=int(bool(drawn)),
        by_color=int(opened.mask.mode == "P" and is_read_by_colors(opened.mask, labels)),
        turned=Counter([] if lies is None else [lies]),
        samples=Counter(drawn),
    )


def _digest_of_check(labelled: LabelledSet, labels: LabelSet, limit: int, skip_damaged: float) -> str:
    """Return a digest of all that the check depends on; of the files, their sizes and etags."""
    parts = [
        [[pair.key, *pair.sizes, *pair.etags, pair.mask_orientation] for pair in part]
        for part in (labelled.train, labelled.val)
    ]
    asked = [parts, labels.to_json(), limit, skip_damaged]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _read_cache(uri: str, digest: str) -> tuple[SetStatistics, SetStatistics] | None:
    """Return what a check with this digest has left; None if there is nothing of the kind."""
    try:
        counts = json.loads(store.read(uri))
        if (counts["format"], counts["digest"]) == (CACHE_FORMAT, digest):
            return SetStatistics.from_json(counts["train"]), SetStatistics.from_json(counts["val"])
    except (Vanished, ValueError, KeyError, TypeError):
        pass
    return None


def _format_size(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
