"""What the check of a labelled set has counted in its pairs: to be printed, and to choose windows by."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from unet.data.channels import RGB, Channels, SampleKind, Samples
from unet.data.labelled_set import LabelledSet
from unet.data.labels import LabelSet
from unet.settings import RequestError, Window

SAMPLES_PER_IMAGE = 1024
"""Pixels of each image that windows are chosen by: images count alike, whatever their size."""

WINDOW_PERCENTILES = (0.5, 99.5)
"""Percentiles of these pixels that become black and white."""

MAX_SIZES = 4
"""How many of the commonest sizes the table shows before it only counts them."""

MANTISSA = 0xFFFFF000
"""Bits of a float32 that are kept of a sample, where there may be millions of them: three digits."""


@dataclass
class SetStatistics:
    """What the check counted in the pairs that it read."""

    pixels: npt.NDArray[np.int64]
    """Pixels by class index, [C]."""
    ignored: int = 0
    """Pixels that are not scored."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Pairs by (height, width)."""
    kinds: Counter[SampleKind] = field(default_factory=Counter)
    """Images by what kind their samples are, of those that windows are chosen by."""
    no_data: int = 0
    """Pixels of images that hold no data."""
    by_color: int = 0
    """Masks with a palette that are read by its colours."""
    turned: Counter[str] = field(default_factory=Counter)
    """Images that EXIF turns, by how their masks lie: displayed, stored, or auto where that is not known."""
    damaged: dict[str, str] = field(default_factory=dict)
    """What is wrong with pairs that are left out, by the URIs of their images."""
    samples: list[Counter[float]] = field(default_factory=list)
    """How often each value occurs in `SAMPLES_PER_IMAGE` pixels of each of them, by band."""

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
        self.kinds += other.kinds
        self.no_data += other.no_data
        self.by_color += other.by_color
        self.turned += other.turned
        self.damaged |= other.damaged
        self.samples += [Counter() for _ in other.samples[len(self.samples) :]]
        for ours, theirs in zip(self.samples, other.samples, strict=False):
            ours.update(theirs)  # and not +=, which looks at all

    def to_json(self) -> dict[str, Any]:
        """Return the counts for a file."""
        return {
            "pixels": self.pixels.tolist(),
            "ignored": self.ignored,
            "sizes": [[*size, count] for size, count in self.sizes.items()],
            "kinds": dict(self.kinds),
            "no_data": self.no_data,
            "by_color": self.by_color,
            "turned": dict(self.turned),
            "damaged": self.damaged,
            "samples": [sorted(band.items()) for band in self.samples],
        }

    @classmethod
    def from_json(cls, counts: dict[str, Any]) -> "SetStatistics":
        """Return the counts of which `to_json` returned `counts`."""
        return cls(
            np.array(counts["pixels"], np.int64),
            counts["ignored"],
            Counter({(height, width): count for height, width, count in counts["sizes"]}),
            Counter(counts["kinds"]),
            counts["no_data"],
            counts["by_color"],
            Counter(counts["turned"]),
            counts["damaged"],
            [Counter(dict(band)) for band in counts["samples"]],
        )


def draw_samples(samples: Samples) -> list[Counter[float]]:
    """Return `SAMPLES_PER_IMAGE` random pixels of those of an image, [N, bands]: how often each value occurs, by
    band."""
    if not len(samples):
        return []
    drawn = samples[np.random.default_rng(0).integers(0, len(samples), SAMPLES_PER_IMAGE)]
    if drawn.dtype.kind == "f" or drawn.dtype.itemsize > 2:
        with np.errstate(over="ignore"):
            drawn = (drawn.astype(np.float32).view(np.uint32) & np.uint32(MANTISSA)).view(np.float32)
        drawn = drawn[np.isfinite(drawn).all(axis=1)]
    return [Counter(band.tolist()) for band in drawn.T]


def choose_channels(
    asked: Channels, given: tuple[Window, ...], statistics: tuple[SetStatistics, SetStatistics]
) -> Channels:
    """Return `asked` with the windows that are given, one for all or one for each band, or that suit what the check has
    read.

    Raises:
        RequestError: as many windows do not fit, or there are no images that they are for.
    """
    both = SetStatistics(np.zeros_like(statistics[0].pixels))
    for part in statistics:
        both.add(part)
    kinds, measured = tuple(sorted(both.kinds)), tuple(_window_of(band) for band in both.samples)
    if asked.bands is None:
        if given and not measured:
            raise RequestError("--window: is for images of more than 8 bits, and the check has read none; leave it out")
        if len(given) > 1:
            raise RequestError("--window: images of RGB have one window; name the --bands to give one for each")
        return replace(asked, windows=given or measured)
    if len(measured) < asked.count:
        raise RequestError("the check has read no image with data")
    if len(kinds) > 1:
        raise RequestError(f"the images have samples of {' and '.join(kinds)}; convert them to one kind")
    if len(given) not in (0, 1, asked.count):
        raise RequestError(f"--window: has {len(given)} windows for {asked.count} bands; give one, or one for each")
    if not given and kinds == ("8 bits",):
        given = ((0, 255),)
    windows = given * asked.count if len(given) == 1 else given or measured
    return replace(asked, windows=windows, kinds=kinds)


def _window_of(band: Counter[float]) -> Window:
    low, high = np.percentile(np.repeat(list(band), list(band.values())), WINDOW_PERCENTILES).tolist()
    if all(value == int(value) for value in band):
        return math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    return low, high if high > low else low + 1


def statistics_table(
    labelled: LabelledSet, labels: LabelSet, statistics: tuple[SetStatistics, SetStatistics], channels: Channels = RGB
) -> str:
    """Return the table of what the check counted, as it is printed, with a column for each part that there is."""
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
    for kind in sorted({kind for part in parts for kind in part.kinds}):
        lines.append(_row(kind, *(part.kinds[kind] for part in parts)) + "   samples of images")
    if any(part.damaged for part in parts):
        lines.append(_row("left out", *(len(part.damaged) for part in parts)) + "   damaged")
    for lie in ("displayed", "stored"):
        if any(part.turned[lie] for part in parts):
            lines.append(_row(f"turned, {lie}"[:15], *(part.turned[lie] for part in parts)) + "   by EXIF; masks")
    if any(part.by_color for part in parts):
        lines.append(_row("read by colour", *(part.by_color for part in parts)) + "   masks: other order of palette")
    for place, (low, high) in enumerate(channels.windows):
        name = "window" if channels.bands is None else f"band {channels.bands[place]}"
        lines.append(_row(name, f"{low:.6g} to {high:.6g}"))
    if any(part.no_data for part in parts):
        pixels = (part.no_data / max(1, part.ignored + part.pixels.sum()) for part in parts)
        lines.append(_row("without data", *(f"{share:.1%}" for share in pixels)) + "   ignored")
    for index, name in enumerate(labels.names):
        shares = [part.shares[index] for part in parts]
        note = "   no pixel to learn it from" if names[0] == "train" and not shares[0] else ""
        lines.append(_row(name, *(f"{share:.1%}" for share in shares)) + note)
    ignored = (part.ignored / max(1, part.ignored + part.pixels.sum()) for part in parts)
    return "\n".join((*lines, _row("(ignored)", *(f"{share:.1%}" for share in ignored))))


def _row(name: str, *cells: object) -> str:
    return f"{name[:15]:16}" + "".join(f"{cell!s:>16}" for cell in cells)


def _format_size(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
