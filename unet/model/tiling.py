"""Images of any size in bounded memory: overlapping tiles blended back, and logits resized, both in bands of rows.

spans: slices of one axis [pixels]; logits: HWC float; bands: from top to bottom, each [rows, W, C]. Tiles form a grid,
so a tile's blending weights are products of its row's and its column's, and those of each axis sum to 1 at every pixel:
blending is a weighted sum. Tiles begin on multiples of the network's `size_divisor`, where its poolings would begin on
the whole image.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Spans = Sequence[slice]

BAND_LOGITS = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Logits that are resized or compared at once, whatever the image's size: on a CPU as many as its cache holds."""


def round_up(length: int, multiple: int) -> int:
    """Return `length` rounded up to a multiple of `multiple` [pixels]."""
    return -(-length // multiple) * multiple


def tile_spans(length: int, tile: int, multiple: int) -> Spans:
    """Return spans of `tile`, a multiple of `multiple` and at least two, that cover `length` and overlap by a quarter.

    A length below `tile` is one span. The last span ends with the image: what the network pads there it would pad on
    the whole image too.
    """
    blocks, size = round_up(length, multiple) // multiple, tile // multiple
    if blocks <= size:
        return (slice(0, length),)
    steps = -(-(blocks - size) // (size - max(1, size // 4)))
    starts = [round(step * (blocks - size) / steps) * multiple for step in range(steps + 1)]
    return tuple(slice(start, min(start + tile, length)) for start in starts)


def blending_weights(spans: Spans) -> list[Tensor]:
    """Return the weight of each span at each of its pixels, float32 [length of the span]; they sum to 1 at every pixel.

    Gaussians around the centres of the spans with a standard deviation of an eighth of a span (nnU-Net, Isensee et
    al., 2021), over their sum. A span's edge, four deviations out, still has a weight: the image's borders are kept.
    """
    if len(spans) == 1:
        return [torch.ones(spans[0].stop)]
    size = spans[0].stop - spans[0].start
    gaussian = np.exp(-0.5 * ((np.arange(size) + 0.5 - size / 2) / (size / 8)) ** 2)
    total = np.zeros(spans[-1].stop)
    for span in spans:
        total[span] += gaussian[: span.stop - span.start]
    weights = (gaussian[: span.stop - span.start] / total[span] for span in spans)
    return [torch.from_numpy(weight.astype(np.float32)) for weight in weights]


def blend_tiles(rows: Spans, columns: Spans, logits_of: Callable[[slice, slice], Tensor]) -> Iterator[Tensor]:
    """Yield the blended logits of the whole image, in bands of rows from top to bottom, each [rows, W, C] float32.

    `logits_of` returns one tile's logits, HWC. Only one row of tiles is held: a band is yielded once no later tile
    touches it. The next band overwrites it in memory, so a caller must not keep it.
    """
    sums = torch.empty(0)
    tops = [row.start for row in rows] + [rows[-1].stop]
    column_weights = blending_weights(columns)
    for row, row_weight, (top, next_top) in zip(rows, blending_weights(rows), pairwise(tops), strict=True):
        height = row.stop - row.start
        for column, column_weight in zip(columns, column_weights, strict=True):
            logits = logits_of(row, column)
            if not sums.numel():
                sums = logits.new_zeros((height, columns[-1].stop, logits.shape[-1]), dtype=torch.float32)
            weight = (row_weight[:, None, None] * column_weight[:, None]).to(logits.device)
            # Two roundings, also where a vector unit could fuse them: the same on any number of threads.
            sums[:height, column] += logits * weight
        done = next_top - top
        yield sums[:done]
        rest = sums[done:height].clone()
        sums[: len(rest)] = rest
        sums[len(rest) :] = 0


def resize_in_bands(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield `logits` (HWC) at `size` (height, width), bilinear, in bands of rows, each [rows, W, C] float32.

    As `F.interpolate` does it (pixel centres aligned, borders repeated), but never whole: of 100 million pixels
    and 12 classes that would take 5 GB.
    """
    above, below, y_weight = _source_pixels(logits.shape[0], size[0], logits.device)
    left, right, x_weight = _source_pixels(logits.shape[1], size[1], logits.device)
    step = max(1, BAND_LOGITS[logits.device.type] // (size[1] * logits.shape[2]))
    for top in range(0, size[0], step):
        rows = slice(top, top + step)
        first = int(above[top])
        source = logits[first : int(below[rows][-1]) + 1].float()
        wide = _lerp_(source.index_select(1, left), source.index_select(1, right), x_weight[:, None])
        upper, lower = (wide.index_select(0, indices[rows] - first) for indices in (above, below))
        yield _lerp_(upper, lower, y_weight[rows, None, None])


def split_band(band: Tensor) -> tuple[Tensor, ...]:
    """Return a band, [rows, W, C], as bands of BAND_LOGITS at most, or of one row."""
    return torch.split(band, max(1, BAND_LOGITS[band.device.type] // band[0].numel()))


def _source_pixels(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each of `target` pixels, the indices of the two of `source` pixels that it lies between, and the
    weight of the second."""
    position = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5)
    position = position.clip(0, source - 1)
    before = position.astype(np.int64)
    after = (before + 1).clip(max=source - 1)
    weight = position - before.astype(np.float32)
    return torch.from_numpy(before).to(device), torch.from_numpy(after).to(device), torch.from_numpy(weight).to(device)


def _lerp_(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Return (1 - weight) * a + weight * b, and overwrite both; unfused, to round alike on any number of threads."""
    return a.mul_(1 - weight).add_(b.mul_(weight))
