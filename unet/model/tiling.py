"""Images of any size in bounded memory: overlapping tiles blended back, and logits resized, both in bands of rows.

spans: slices of one axis [pixels]; logits: HWC float; bands: from top to bottom, each [rows, W, C]. Tiles form a grid,
so the blending weights are products of a row's and a column's, and each axis's sum to 1 at every pixel: blending is a
plain weighted sum. Tiles begin on multiples of the network's, where its poolings would fall on the whole image.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Spans = Sequence[slice]

BAND = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Logits that are resized or decided at once, whatever the image's size: on a CPU as many as its cache holds."""


def padded(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple of `multiple` [pixels]."""
    return -(-length // multiple) * multiple


def spans(length: int, tile: int, multiple: int) -> Spans:
    """Covers `length` evenly by spans of `tile` (a multiple of `multiple`, at least two), a quarter of it overlapping.

    A length below `tile` is one span. The last span ends with the image: what the network pads up to its multiple it
    would pad on the whole image too.
    """
    blocks, size = padded(length, multiple) // multiple, tile // multiple
    if blocks <= size:
        return (slice(0, length),)
    gaps = -(-(blocks - size) // (size - max(1, size // 4)))
    starts = [round(place * (blocks - size) / gaps) * multiple for place in range(gaps + 1)]
    return tuple(slice(start, min(start + tile, length)) for start in starts)


def weights(axis: Spans) -> list[Tensor]:
    """The share of each span at each of its pixels, float32 [length of the span]; at every pixel shares sum to 1.

    Gaussians around the centres of the spans with a standard deviation of an eighth of a span (nnU-Net, Isensee et
    al., 2021), over their sum. A span's edge, four deviations out, still has a weight: the image's borders are kept.
    """
    if len(axis) == 1:
        return [torch.ones(axis[0].stop)]
    size = axis[0].stop - axis[0].start
    curve = np.exp(-0.5 * ((np.arange(size) + 0.5 - size / 2) / (size / 8)) ** 2)
    total = np.zeros(axis[-1].stop)
    for span in axis:
        total[span] += curve[: span.stop - span.start]
    shares = (curve[: span.stop - span.start] / total[span] for span in axis)
    return [torch.from_numpy(share.astype(np.float32)) for share in shares]


def blend(rows: Spans, columns: Spans, logits_of: Callable[[slice, slice], Tensor]) -> Iterator[Tensor]:
    """The blended logits of the whole image, in bands of rows from top to bottom, each [rows, W, C] float32.

    `logits_of` gives one tile's logits, HWC. Only one row of tiles is held: a band is final when no later tile touches
    it, and its memory is used again for the next one, so be done with a band before asking for another.
    """
    held = torch.empty(0)
    tops = [row.start for row in rows] + [rows[-1].stop]
    across = weights(columns)
    for row, down, (top, following) in zip(rows, weights(rows), pairwise(tops), strict=True):
        height = row.stop - row.start
        for column, share in zip(columns, across, strict=True):
            tile = logits_of(row, column)
            if not held.numel():
                held = tile.new_zeros((height, columns[-1].stop, tile.shape[-1]), dtype=torch.float32)
            window = (down[:, None, None] * share[:, None]).to(tile.device)
            held[:height, column] += tile * window  # two roundings, whatever the vector unit fuses: same on any cores
        done = following - top
        yield held[:done]
        kept = held[done:height].clone()
        held[: len(kept)] = kept
        held[len(kept) :] = 0


def resized(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """`logits` (HWC) at `size` (height, width), bilinear, in bands of rows, each [rows, W, C] float32.

    As `F.interpolate` does it (pixel centres aligned, borders repeated), but never whole: of 100 million pixels
    and 12 classes that would take 5 GB.
    """
    above, below, down = _neighbours(logits.shape[0], size[0], logits.device)
    left, right, across = _neighbours(logits.shape[1], size[1], logits.device)
    step = max(1, BAND[logits.device.type] // (size[1] * logits.shape[2]))
    for top in range(0, size[0], step):
        rows = slice(top, top + step)
        first = int(above[top])
        source = logits[first : int(below[rows][-1]) + 1].float()
        wide = _mix(source.index_select(1, left), source.index_select(1, right), across[:, None])
        upper, lower = (wide.index_select(0, which[rows] - first) for which in (above, below))
        yield _mix(upper, lower, down[rows, None, None])


def _neighbours(length: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `wanted` pixels: the source pixels before and after it, of `length`, and the weight of the latter."""
    place = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(length / wanted) - np.float32(0.5)
    place = place.clip(0, length - 1)
    before = place.astype(np.int64)
    after = (before + 1).clip(max=length - 1)
    return (
        torch.from_numpy(before).to(device),
        torch.from_numpy(after).to(device),
        torch.from_numpy(place - before.astype(np.float32)).to(device),
    )


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """(1 - share) * a + share * b, in place of both; unfused, so that it rounds alike on any number of threads."""
    return a.mul_(1 - share).add_(b.mul_(share))
