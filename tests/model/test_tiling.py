"""Large images in pieces: tiles blend back to the field they were cut from, and bands are resized as the whole is."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unet.model.tiling import blend_tiles, blending_weights, resize_in_bands, tile_spans


def whole(bands: Iterator[Tensor]) -> Tensor:
    """Bands, each copied before the next overwrites it."""
    return torch.cat([band.clone() for band in bands])


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 65, 100, 1000, 20_000])
@pytest.mark.parametrize("tile", [32, 64, 80])
def test_spans_cover_every_pixel_and_overlap_by_a_quarter(length: int, tile: int) -> None:
    axis = tile_spans(length, tile, 16)
    assert (axis[0].start, axis[-1].stop) == (0, length)
    for before, after in pairwise(axis):
        assert before.stop - after.start >= tile // 16 // 4 * 16
        assert before.start < after.start
        assert before.stop < after.stop


@pytest.mark.parametrize("length", [65, 100, 1000])
def test_spans_are_full_tiles_that_begin_on_the_networks_multiple(length: int) -> None:
    axis = tile_spans(length, 64, 16)
    assert all(span.start % 16 == 0 for span in axis)
    assert all(span.stop - span.start == 64 for span in axis[:-1])
    assert 48 < axis[-1].stop - axis[-1].start <= 64  # the rest of the last one is the network's padding


def test_a_length_below_a_tile_is_one_span() -> None:
    assert tile_spans(50, 64, 16) == (slice(0, 50),)


def test_weights_sum_to_one_at_every_pixel_and_are_never_zero() -> None:
    axis = tile_spans(1000, 64, 16)
    total = torch.zeros(1000)
    for span, share in zip(axis, blending_weights(axis), strict=True):
        assert (share > 0).all()
        total[span] += share
    torch.testing.assert_close(total, torch.ones(1000))


@pytest.mark.parametrize("size", [(200, 333), (1, 500), (500, 1), (20, 2000), (40, 40)])
def test_cut_tiles_blend_back_to_the_field(size: tuple[int, int]) -> None:
    field = torch.randn(*size, 3)
    bands = blend_tiles(
        tile_spans(size[0], 64, 16), tile_spans(size[1], 64, 16), lambda row, column: field[row, column]
    )
    torch.testing.assert_close(whole(bands), field)


def test_a_tile_counts_most_in_its_middle() -> None:
    axis = tile_spans(112, 64, 16)  # two tiles, which share the pixels 48..63
    tiles = {0: torch.zeros(64, 16, 1), axis[1].start: torch.ones(64, 16, 1)}
    column = whole(blend_tiles(axis, (slice(0, 16),), lambda row, _: tiles[row.start]))[:, 0, 0]
    assert (column[:48] == 0).all()
    assert (column[64:] == 1).all()
    assert (column.diff() >= 0).all()
    assert column[49] < 0.1 < 0.9 < column[62]


def test_only_one_row_of_tiles_is_held() -> None:
    bands = blend_tiles(
        tile_spans(1000, 64, 16), tile_spans(50, 64, 16), lambda row, _: torch.zeros(row.stop - row.start, 50, 2)
    )
    assert max(len(band) for band in bands) <= 64


@pytest.mark.parametrize("size", [(96, 130), (31, 20), (48, 64), (1, 300), (300, 1), (7, 1000)])
def test_resized_logits_agree_with_interpolate(size: tuple[int, int]) -> None:
    logits = torch.randn(48, 64, 5)
    expected = F.interpolate(logits.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)
    result = torch.cat(list(resize_in_bands(logits, size)))
    torch.testing.assert_close(result, expected[0].permute(1, 2, 0), atol=1e-5, rtol=0)


def test_bands_of_a_large_image_are_small_and_do_not_show() -> None:
    logits = torch.randn(20, 30, 4)
    bands = list(resize_in_bands(logits, (700, 900)))
    assert len(bands) > 1
    expected = F.interpolate(logits.permute(2, 0, 1)[None], size=(700, 900), mode="bilinear", align_corners=False)
    torch.testing.assert_close(torch.cat(bands), expected[0].permute(1, 2, 0), atol=1e-5, rtol=0)
