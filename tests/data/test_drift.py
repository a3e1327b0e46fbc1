"""Drift: another sample of the same images is not taken for one, and what a model would notice is."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pytest

from unet.data.drift import BINS, MIN_IMAGES, Drift, ImageStatistics, channel_names, histograms_of, stability_index
from unet.data.image import Array, open_image, to_rgb_array
from unet.data.labels import built_in_labels
from unet.data.mask import open_mask, to_classes
from unet.sample.scene import draw_scene

CLASSES, SEEDS, SAMPLE = 11, range(20), 40
ROAD, CAR, PEDESTRIAN, BICYCLIST = 3, 8, 9, 10

Pair = tuple[Array, Array]
Measured = list[tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.int64]]]
"""Of each pair the histograms, and the pixels by class."""


@pytest.fixture(scope="module", params=["generated", "CamVid"])
def pairs(request: pytest.FixtureRequest) -> list[Pair]:
    """Images and masks of one set, small."""
    if request.param == "generated":
        return [(image[::4, ::4], mask[::4, ::4]) for image, mask in map(draw_scene, range(2 * SAMPLE))]
    folder, labels = request.getfixturevalue("camvid"), built_in_labels("camvid")
    found = []
    for path in sorted((folder / "train").iterdir())[:: 367 // (2 * SAMPLE)]:
        mask = to_classes(open_mask((folder / "trainannot" / f"{path.stem}.png").read_bytes()), labels)
        found.append((to_rgb_array(open_image(path.read_bytes()))[::8, ::8], mask[::8, ::8]))
    return found


def darkened(image: Array, mask: Array) -> Pair:
    return image // 2, mask


def by_another_camera(image: Array, mask: Array) -> Pair:
    """Warmer, and with less contrast."""
    return ((image - 128.0) * 0.8 * (1.1, 1.0, 0.8) + 128).clip(0, 255).astype(np.uint8), mask


def without_road_users(image: Array, mask: Array) -> Pair:
    return image, np.where(np.isin(mask, (CAR, PEDESTRIAN, BICYCLIST)), np.uint8(ROAD), mask)


def measure(pairs: Iterable[Pair]) -> Measured:
    return [(histograms_of(image), np.bincount(mask.reshape(-1), minlength=256)[:CLASSES]) for image, mask in pairs]


def drift_of(reference: Measured, current: Measured) -> Drift:
    sums = ImageStatistics.empty(3, CLASSES), ImageStatistics.empty(3, CLASSES)
    for statistics, measured in zip(sums, (reference, current), strict=True):
        for histograms, class_pixels in measured:
            statistics.add_image(histograms)
            statistics.add_mask(class_pixels, 0.5)
    return Drift(*sums, channel_names(None), limit=0.25, confidence_limit=0.05)


def sampled(reference: Measured, current: Measured, seed: int) -> Drift:
    """The drift between random samples of which no two pairs are one."""
    order = np.random.default_rng(seed).permutation(len(reference))
    return drift_of([reference[place] for place in order[:SAMPLE]], [current[place] for place in order[SAMPLE:]])


def test_another_sample_of_the_same_set_has_never_drifted(pairs: list[Pair]) -> None:
    measured = measure(pairs)
    for seed in SEEDS:
        drift = sampled(measured, measured, seed)
        assert drift.judged == ["red", "green", "blue", "classes", "confidence"]
        assert drift.drifted == [], drift.indices


@pytest.mark.parametrize(
    ("change", "named"),
    [(darkened, {"red", "green", "blue"}), (by_another_camera, {"blue"}), (without_road_users, {"classes"})],
)
def test_what_a_model_would_notice_has_always_drifted(
    pairs: list[Pair], change: Callable[[Array, Array], Pair], named: set[str]
) -> None:
    before, after = measure(pairs), measure(change(*pair) for pair in pairs)
    for seed in SEEDS:
        drift = sampled(before, after, seed)
        assert named <= set(drift.drifted), drift.indices


def test_few_images_have_an_index_and_no_verdict(pairs: list[Pair]) -> None:
    many, few = measure(pairs[:MIN_IMAGES]), measure(darkened(*pair) for pair in pairs[: MIN_IMAGES - 1])
    for reference, current in ((many, few), (few, many)):
        drift = drift_of(reference, current)
        assert drift.indices["red"] > 0.25
        assert (drift.judged, drift.drifted) == ([], [])


def test_a_handful_of_images_of_the_same_set_may_differ_and_has_not_drifted(pairs: list[Pair]) -> None:
    measured = measure(pairs)
    samples = [np.random.default_rng(seed).permutation(len(pairs))[:5] for seed in SEEDS]
    drifts = [drift_of(measured, [measured[place] for place in sample]) for sample in samples]
    assert max(max(drift.indices.values()) for drift in drifts) > 0.25
    assert [drift.drifted for drift in drifts] == [[]] * len(SEEDS)


def test_the_index_is_the_sum_over_bins_that_the_literature_has() -> None:
    before, after = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    assert stability_index(before, after) == pytest.approx(0.1 * np.log(5 / 4) + 0.1 * np.log(4 / 3), rel=1e-3)
    assert stability_index(before, before) == 0
    assert 5 < stability_index(np.array([1.0, 0.0]), np.array([0.0, 1.0])) < 50  # and not infinite


def test_a_fall_of_the_confidence_has_drifted_and_a_rise_has_not() -> None:
    def drifted(*confidences: float | None) -> list[str]:
        sums = ImageStatistics.empty(1, 1), ImageStatistics.empty(1, 1)
        for statistics, confidence in zip(sums, confidences, strict=True):
            for _ in range(MIN_IMAGES):
                statistics.add_image(np.full((1, BINS), 1 / BINS))
                statistics.add_mask(np.array([7]), confidence)
        return Drift(*sums, ("band 1",), limit=0.25, confidence_limit=0.05).drifted

    assert drifted(0.95, 0.80) == ["confidence"]
    assert drifted(0.80, 0.95) == []
    assert drifted(None, 0.10) == []  # of a model without validation


def test_a_histogram_has_the_pixels_with_data_of_any_bands_and_size() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 128, (700, 900, 5), np.uint8)
    holes = np.zeros((700, 900), bool)
    holes[:, 400:] = True
    image[holes] = 255
    found = histograms_of(image, holes)
    assert found is not None
    assert found.shape == (5, BINS)
    assert found[:, : BINS // 2] == pytest.approx(2 / BINS, abs=0.02)
    assert (found[:, BINS // 2 :] == 0).all()
    assert histograms_of(image, np.ones_like(holes)) is None
    one = histograms_of(np.full((1, 1, 1), 8, np.uint8))
    assert one is not None
    assert one[0].tolist() == [0.0, 1.0, *[0.0] * (BINS - 2)]


def test_images_weigh_the_same_whatever_their_size() -> None:
    statistics = ImageStatistics.empty(1, 2)
    for side, value, confidence in ((10, 0, 0.5), (300, 255, 1.0)):
        statistics.add_image(histograms_of(np.full((side, side, 1), value, np.uint8)))
        statistics.add_mask(np.bincount([value // 255], [side**2], minlength=2).astype(np.int64), confidence)
    assert statistics.mean_histograms[0, [0, -1]].tolist() == [0.5, 0.5]
    assert statistics.mean_class_shares.tolist() == [0.5, 0.5]
    assert statistics.mean_confidence == 0.75


def test_an_image_without_data_counts_nowhere() -> None:
    statistics = ImageStatistics.empty(1, 2)
    statistics.add_image(histograms_of(np.zeros((4, 4, 1), np.uint8), np.ones((4, 4), bool)))
    statistics.add_mask(np.array([0, 0]), 0.0)
    assert (statistics.images, statistics.masks, statistics.mean_confidence) == (0, 0, None)


def test_statistics_of_other_channels_or_classes_are_refused() -> None:
    found = ImageStatistics.empty(3, CLASSES).to_json()
    assert ImageStatistics.from_json(found, 3, CLASSES).to_json() == found
    for shape in ((4, CLASSES), (3, 2)):
        with pytest.raises(ValueError, match="its reference is not of"):
            ImageStatistics.from_json(found, *shape)
