"""A mask moves with its image, and nothing but labels and `IGNORE` comes out."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from unet.data import augment as augmentation
from unet.data.augment import draw_view
from unet.data.image import Array
from unet.data.labels import IGNORE, INVALID
from unet.data.planes import Planes
from unet.data.settings import AugmentSettings
from unet.settings import Geometry

STRONG = AugmentSettings(scale=(0.5, 2.0), vertical_flip=0.5, warp=0.8, rotate=15.0, elastic=0.03)
SAME_COLOURS: dict[str, Any] = dict.fromkeys(("brightness", "contrast", "saturation", "gamma", "white_balance"), 0.0)
STILL = AugmentSettings(scale=(1, 1), flip=0, warp=0, **SAME_COLOURS)


def augment(
    image: Array, mask: Array, *, geometry: Geometry, settings: AugmentSettings, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return image and mask of a random view of a small source."""
    view = draw_view((mask.shape[0], mask.shape[1]), geometry=geometry, settings=settings, rng=rng)
    return view.render(Planes.of(image), mask)


def shapes(size: tuple[int, int]) -> tuple[Array, Array]:
    """Class 1, a white disc, and class 2, a black bar, on class 0, mid-grey; their values tell them apart."""
    height, width = size
    mask = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((width * 0.2, height * 0.2, width * 0.5, height * 0.6), fill=1)
    draw.rectangle((width * 0.6, height * 0.1, width * 0.75, height * 0.9), fill=2)
    values = np.array([127, 255, 0], np.uint8)[np.asarray(mask)]
    return np.repeat(values[..., None], 3, axis=2), np.asarray(mask)


def inside(mask: Array) -> npt.NDArray[np.bool_]:
    """Pixels whose neighbours within 2 pixels are seen and all have their class: everything but edges."""
    padded = np.pad(mask, 2, constant_values=INVALID)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    clear: npt.NDArray[np.bool_] = (windows.min((2, 3)) == windows.max((2, 3))) & (mask != IGNORE)
    return clear


@pytest.mark.parametrize("geometry", [Geometry("resize", (64, 80)), Geometry("native", (72, 64))])
def test_a_mask_stays_on_its_image_through_a_thousand_views(geometry: Geometry) -> None:
    image, mask = shapes((120, 160))
    settings = replace(STRONG, **SAME_COLOURS)
    seen_classes = set()
    for seed in range(1000):
        view, truth = augment(image, mask, geometry=geometry, settings=settings, rng=np.random.default_rng(seed))
        assert view.shape == (*geometry.size, 3)
        assert truth.shape == geometry.size
        assert set(np.unique(truth)) <= {0, 1, 2, IGNORE}
        looks = np.digitize(view[..., 0].astype(int), [64, 191])  # 0 black, 1 grey, 2 white
        expected = np.array([1, 2, 0])[truth.clip(max=2)]
        clear = inside(truth)
        assert (looks == expected)[clear].all(), f"view {seed}"
        seen_classes |= set(np.unique(truth[clear]))
    assert seen_classes == {0, 1, 2}


def test_what_lies_outside_the_source_is_ignored() -> None:
    image, mask = shapes((40, 60))
    small = AugmentSettings(scale=(0.5, 0.5), flip=0, warp=0)
    view, truth = augment(
        image, mask, geometry=Geometry("resize", (40, 60)), settings=small, rng=np.random.default_rng(0)
    )
    assert (truth != IGNORE).sum() in (20 * 30, 19 * 30, 20 * 29, 19 * 29)  # the pixels wholly inside
    assert view.shape == (40, 60, 3)


def test_a_source_smaller_than_the_crop_is_padded_with_ignore() -> None:
    image, mask = shapes((20, 30))
    _, truth = augment(image, mask, geometry=Geometry("native", (32, 32)), settings=STILL, rng=np.random.default_rng(0))
    assert (truth != IGNORE).sum() == 20 * 30


@pytest.mark.parametrize("geometry", [Geometry("resize", (16, 24)), Geometry("native", (32, 32))])
@pytest.mark.parametrize("source", [(1, 200), (200, 1), (1, 1)])
def test_sources_one_pixel_high_or_wide_are_no_trouble(geometry: Geometry, source: tuple[int, int]) -> None:
    image, mask = np.full((*source, 3), 9, np.uint8), np.ones(source, np.uint8)
    for seed in range(200):
        view, truth = augment(image, mask, geometry=geometry, settings=STRONG, rng=np.random.default_rng(seed))
        assert view.shape == (*geometry.size, 3)
        assert set(np.unique(truth)) <= {1, IGNORE}


def test_without_settings_nothing_changes() -> None:
    image, mask = shapes((48, 64))
    view, truth = augment(
        image, mask, geometry=Geometry("resize", (48, 64)), settings=STILL, rng=np.random.default_rng(0)
    )
    assert (view == image).all()
    assert (truth == mask).all()


def test_a_view_depends_on_its_seed_alone() -> None:
    image, mask = shapes((48, 64))
    views = [
        augment(image, mask, geometry=Geometry("resize", (32, 32)), settings=STRONG, rng=np.random.default_rng(seed))[0]
        for seed in (3, 4, 3)
    ]
    assert (views[0] == views[2]).all()
    assert (views[0] != views[1]).any()


def test_jitter_changes_colours_and_no_label() -> None:
    image, mask = shapes((48, 64))
    loud = AugmentSettings(scale=(1, 1), flip=0, warp=0, brightness=0.5, contrast=0.5, saturation=0.5)
    view, truth = augment(
        image, mask, geometry=Geometry("resize", (48, 64)), settings=loud, rng=np.random.default_rng(1)
    )
    assert (view != image).any()
    assert (truth == mask).all()


def test_other_light_is_a_power_of_the_samples_and_a_factor_of_each_channel() -> None:
    ramp = np.repeat(np.arange(20, 200, dtype=np.uint8)[None, :, None], 3, axis=2)
    mask = np.zeros((1, 180), np.uint8)
    light = replace(STILL, gamma=0.4, white_balance=0.1)
    geometry = Geometry("native", (1, 180))
    drawn = set()
    for seed in range(50):
        view = draw_view((1, 180), geometry=geometry, settings=light, rng=np.random.default_rng(seed))
        colors = view.colors
        assert max(abs(np.log(colors.gamma)) / 0.4, *abs(np.log(colors.balance)) / 0.1) <= 1
        shown, _ = view.render(Planes.of(ramp), mask)
        expected = (255 * (ramp / 255) ** colors.gamma).round() * colors.balance
        assert abs(shown - expected.clip(0, 255)).max() <= 1
        grey, _ = view.render(Planes.of(ramp[..., :1]), mask)  # of one band there is no balance
        assert abs(grey - 255 * (ramp[..., :1] / 255) ** colors.gamma).max() <= 1
        drawn.add(colors)
    assert len(drawn) == 50


@pytest.mark.parametrize("geometry", [Geometry("resize", (48, 40)), Geometry("native", (48, 40))])
@pytest.mark.parametrize("settings", [AugmentSettings(), STRONG, STILL], ids=["default", "strong", "still"])
def test_the_view_of_a_region_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, geometry: Geometry, settings: AugmentSettings
) -> None:
    rng = np.random.default_rng(0)
    less = 0
    for seed in range(60):
        height, width = size = (int(rng.integers(30, 400)), int(rng.integers(200, 400)))
        image, mask = rng.integers(0, 256, (*size, 3)).astype(np.uint8), rng.integers(0, 5, size).astype(np.uint8)

        monkeypatch.setattr(augmentation, "SMALL_PIXELS", height * width)
        whole = augment(image, mask, geometry=geometry, settings=settings, rng=np.random.default_rng(seed))
        monkeypatch.setattr(augmentation, "SMALL_PIXELS", 0)
        view = draw_view(size, geometry=geometry, settings=settings, rng=np.random.default_rng(seed))
        left, top, right, bottom = view.region
        part = view.render(Planes.of(image[top:bottom, left:right]), mask[top:bottom, left:right])
        assert (part[0] == whole[0]).all(), seed
        assert (part[1] == whole[1]).all(), seed
        less += (bottom - top) * (right - left) < height * width / 2
    assert less > 40 or geometry.kind == "resize"


def test_a_view_needs_the_size_of_its_source_alone() -> None:
    """The numbers drawn for it are those that were always drawn: a run goes on as it began."""
    geometry = Geometry("native", (512, 512))
    view = draw_view((8000, 9000), geometry=geometry, settings=AugmentSettings(), rng=np.random.default_rng((5, 1, 2)))
    left, top, right, bottom = view.region
    assert 0 <= left < view.box[0]
    assert view.box[2] < right <= 9000
    assert 0 <= top < view.box[1]
    assert view.box[3] < bottom <= 8000
    assert (right - left) * (bottom - top) < 800 * 800
