"""The check of a labelled set: every pair is read before anything is trained or scored, and what is seen is counted."""

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from unet.data.channels import RGB, Channels, kind_of
from unet.data.image import DamagedError, ImageError
from unet.data.labelled_set import LabelledSet, choose_bands, orient
from unet.data.labels import IGNORE, LabelSet
from unet.data.layouts import Pair, summarize
from unet.data.mask import is_read_by_colors
from unet.data.open_pair import OpenPair, UndecidedOrientationError, open_pairs, pixels_of
from unet.data.prefetch import prefetch
from unet.data.settings import DataSettings, MaskOrientation, SetSettings
from unet.data.statistics import SetStatistics, choose_channels, draw_samples, statistics_table
from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import Vanished

DECODERS = 16
"""Pairs that the check decodes at a time, at most."""

DECODED_PIXELS = 1 << 27
"""Pixels of these pairs, at most; a larger pair is decoded alone. Pillow takes up to four bytes for each."""

LEAST_OF_PART = 16
"""Pairs of a part that are looked at, however few of the set it has; of a small sample fewer."""

CACHE_FORMAT = 3
"""Of what the check leaves for the next one."""

LOG_INTERVAL = 5.0
"""Seconds between two lines about the progress of the check."""


@dataclass(frozen=True)
class CheckedSet:
    """A labelled set, and what the check has found."""

    labelled: LabelledSet
    """Without its damaged pairs."""
    statistics: tuple[SetStatistics, SetStatistics]
    """Of training and validation part."""
    channels: Channels
    table: str
    """What was counted, to be printed."""


def check(
    found: LabelledSet,
    labels: LabelSet,
    settings: SetSettings,
    log: Callable[[str], None],
    channels: Channels | None = None,
    cache: str | None = None,
) -> CheckedSet:
    """Check a set that was found, for the channels of a model, or those that suit it. See `check_labelled_set`.

    Raises:
        RequestError: a file that cannot be used, or flags that do not fit the images.
    """
    given = settings if isinstance(settings, DataSettings) else DataSettings()
    asked = channels or Channels(choose_bands(found, given.bands, log), nodata=given.nodata)
    statistics = check_labelled_set(
        found, labels, settings.check_limit, log, cache, settings.skip_damaged, channels=asked
    )
    channels = channels or choose_channels(asked, given.windows, statistics)
    table = statistics_table(found, labels, statistics, channels)
    return CheckedSet(apply_check(found, statistics), statistics, channels, table)


def check_labelled_set(
    labelled: LabelledSet,
    labels: LabelSet,
    limit: int,
    log: Callable[[str], None],
    cache: str | None = None,
    skip_damaged: float = 0.0,
    channels: Channels = RGB,
) -> tuple[SetStatistics, SetStatistics]:
    """Read every pair, or a random sample of about `limit`, and return the statistics of training and validation part.

    Of all pairs, which then are read, a share of `skip_damaged` may be damaged.

    `log` is called with lines about its progress. `cache` is a file, which need not exist: what was counted in the same
    files, by their sizes and etags, is taken from there in place of the files, and put there where nothing is wrong.

    Raises:
        RequestError: names the first faulty files, with remedies.
    """
    if not all(etag for pair in labelled.train + labelled.val for etag in pair.etags):
        cache = None  # a server that gives none
    digest = _digest_of_check(labelled, labels, limit, skip_damaged, channels)
    if cache is not None and (known := _read_cache(cache, digest)) is not None:
        log("check: the files are those of the last check, which found nothing wrong")
        return known
    train, val = _count_pairs(labelled, labels, limit, skip_damaged, channels, log)
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
        RequestError: nothing is left of a part, or the check has not found how masks lie.
    """
    damaged = statistics[0].damaged | statistics[1].damaged
    parts = [tuple(pair for pair in part if pair.image not in damaged) for part in (labelled.train, labelled.val)]
    for name, before, left in zip(("training", "validation"), (labelled.train, labelled.val), parts, strict=True):
        if before and not left:
            raise RequestError(f"all {len(before)} {name} pairs are damaged; mend them, or give others")
    labelled = LabelledSet(*parts)
    turned = statistics[0].turned + statistics[1].turned
    found: list[MaskOrientation] = [lie for lie in ("displayed", "stored") if turned[lie]]
    if turned["auto"] and len(found) != 1:
        why = "the sizes of some say one, of others the other" if found else "no size says"
        raise RequestError(
            f"{turned['auto']} images are turned by EXIF, and {why} whether their masks are turned with them; give "
            "--mask-orientation stored or displayed"
        )
    return orient(labelled, found[0]) if len(found) == 1 else labelled


def _count_pairs(
    labelled: LabelledSet,
    labels: LabelSet,
    limit: int,
    skip_damaged: float,
    channels: Channels,
    log: Callable[[str], None],
) -> tuple[SetStatistics, SetStatistics]:
    numbered = list[tuple[Pair, int]]()
    for part, pairs in enumerate((labelled.train, labelled.val)):
        fair = round(limit * len(pairs) / len(labelled.train + labelled.val))
        wanted = len(pairs) if skip_damaged else max(fair, 1, min(LEAST_OF_PART, limit // 8))
        chosen = pairs if wanted >= len(pairs) else random.Random(0).sample(pairs, wanted)
        numbered += [(pair, part) for pair in chosen]
    train, val = (SetStatistics(np.zeros(len(labels.classes), np.int64)) for _ in range(2))
    faults = []
    logged = time.monotonic()
    opened = open_pairs([pair for pair, _ in numbered])
    count, weight = partial(_statistics_of, labels, channels), partial(pixels_of, channels=channels)
    results = prefetch(count, opened, weight=weight, budget=DECODED_PIXELS, threads=DECODERS)
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


def _statistics_of(labels: LabelSet, channels: Channels, opened: OpenPair | ImageError) -> SetStatistics | ImageError:
    """Return the statistics of one pair, or what is wrong with it. Of image and mask one is decoded at a time."""
    if isinstance(opened, ImageError):
        return opened
    try:
        samples, holes = opened.check_image(channels)
        try:
            lies = opened.mask_orientation()
        except UndecidedOrientationError:
            lies = "auto"  # of which no pixel is another, and no size
            opened = replace(opened, pair=replace(opened.pair, mask_orientation="displayed"))
        mask = opened.decode_mask(labels)
    except ImageError as error:
        return error
    if holes is not None:
        mask = np.where(holes, np.uint8(IGNORE), mask)
    counts = np.array(Image.fromarray(mask).histogram())
    return SetStatistics(
        counts[: len(labels.classes)],
        int(counts[IGNORE]),
        sizes=Counter([(mask.shape[0], mask.shape[1])]),
        kinds=Counter([] if samples is None else [kind_of(samples)]),
        no_data=0 if holes is None else int(holes.sum()),
        by_color=int(opened.mask.mode == "P" and is_read_by_colors(opened.mask, labels)),
        turned=Counter([] if lies is None else [lies]),
        samples=[] if samples is None else draw_samples(samples),
    )


def _digest_of_check(
    labelled: LabelledSet, labels: LabelSet, limit: int, skip_damaged: float, channels: Channels
) -> str:
    """Return a digest of all that the check depends on; of the files, their sizes and etags."""
    parts = [
        [[pair.key, *pair.sizes, *pair.etags, pair.mask_orientation] for pair in part]
        for part in (labelled.train, labelled.val)
    ]
    asked = [parts, labels.to_json(), limit, skip_damaged, channels.to_json()]
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
