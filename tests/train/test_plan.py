"""What is left open is planned: from the set, the machine and the time alone."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kinds import write_set
from unet.data.channels import RGB
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.data.settings import DataSettings
from unet.model.settings import ModelSettings, architecture
from unet.settings import RequestError
from unet.train.measure import kept_at
from unet.train.plan import (
    ENOUGH_STEPS,
    MOST_STEPS,
    START_SECONDS,
    Kept,
    Machine,
    Plan,
    SetFacts,
    Size,
    Speed,
    make_plan,
)
from unet.train.settings import FitSettings, TrainSettings

SMALL_GPU, LARGE_GPU = Machine(memory=6e9, cores=8, gpu=True), Machine(memory=70e9, cores=8, gpu=True)
LAPTOP = Machine(memory=10e9, cores=2)

SECONDS_OF_A_PIXEL = 2.2e-6
"""Of training at width 32, on two cores."""


def plan(
    size: Size = (360, 480),
    images: int = 367,
    *,
    classes: int = 11,
    kept: float = 0.8,
    images_kept: float = 0.95,
    machine: Machine = LAPTOP,
    validation: float = 12.0,
    settings: dict[str, Any] | None = None,
    **fit: Any,
) -> Plan:
    """Plan for a set of equal images, on a machine that is exactly as fast as it is measured to be."""

    def speed(measured: TrainSettings) -> Speed:
        pixels = measured.fit.images_per_pass * measured.geometry.size[0] * measured.geometry.size[1]
        return Speed(0.1 + pixels * SECONDS_OF_A_PIXEL * architecture(measured.model)["width"] / 32, validation)

    given = TrainSettings(**(settings or {}), fit=FitSettings(**fit))
    facts = SetFacts(
        sizes=Counter({size: images}), images=images, classes=classes, kept_at=lambda _: Kept(kept, images_kept)
    )
    return make_plan(given, facts, machine, speed, lambda: 60 * (given.fit.minutes or 0))


@pytest.mark.parametrize(
    ("size", "kept", "machine", "crop", "resized", "batch"),
    [
        ((360, 480), 0.8, LAPTOP, (320, 320), None, 8),  # streets: crops, at their own scale
        ((360, 480), 0.8, LARGE_GPU, (352, 480), None, 16),  # whole images where they fit
        ((96, 128), 0.8, LAPTOP, (96, 128), None, 32),
        ((40, 56), 0.8, LAPTOP, (32, 64), None, 32),
        ((1024, 2048), 0.9, LARGE_GPU, (512, 512), None, 16),
        ((1072, 1920), 0.99, LAPTOP, None, (240, 432), 8),  # large shapes: seen whole
        ((10_000, 10_000), 0.9, LAPTOP, (320, 320), None, 8),  # scenes: crops
        ((100, 4000), 0.9, LAPTOP, (96, 1024), None, 8),  # strips
        ((1072, 1920), 0.9, SMALL_GPU, (512, 512), None, 4),
    ],
)
def test_native_crops_unless_masks_of_large_images_bear_resizing(
    size: Size, kept: float, machine: Machine, crop: Size | None, resized: Size | None, batch: int
) -> None:
    planned = plan(size, kept=kept, machine=machine, settings={"gpu": machine.gpu}).settings
    assert (planned.crop, planned.size) == (crop, resized)
    assert planned.fit.batch_size == batch


def test_what_is_given_is_kept() -> None:
    given: dict[str, Any] = {"size": (128, 128), "model": ModelSettings(width=24)}
    planned = plan(settings=given, batch_size=5, steps_per_epoch=7, minutes=3).settings
    assert (planned.size, planned.crop, planned.model.width) == ((128, 128), None, 24)
    assert (planned.fit.batch_size, planned.fit.steps_per_epoch) == (5, 7)
    three = plan(settings={"crop": (64, 64)}, epochs=3, minutes=30).settings.fit
    assert three.epochs == 3
    assert (three.steps_per_epoch or 0) > 1000
    assert plan(batch_size=4, epochs=20).settings.fit.steps_per_epoch is None  # each image once an epoch, as ever
    both = plan(epochs=2, steps_per_epoch=3, minutes=30)
    assert (both.settings.fit.epochs, both.settings.fit.steps_per_epoch) == (2, 3)
    assert both.lines[-1].endswith("whatever --minutes says")
    assert plan(max_steps=9).settings.fit.max_steps == 9
    assert plan(settings={"model": ModelSettings(model="classic")}).settings.model.width is None


@pytest.mark.parametrize(
    ("images", "machine", "passes"),
    [(12, LAPTOP, ENOUGH_STEPS * 4 / 12), (367, LAPTOP, 20), (50_000, LAPTOP, MOST_STEPS * 8 / 50_000)],
)
def test_without_a_time_small_sets_are_seen_more_often_than_large_ones(
    images: int, machine: Machine, passes: float
) -> None:
    fit = plan(images=images, machine=machine).settings.fit
    assert fit.epochs == 20
    assert 20 * (fit.steps_per_epoch or 0) * fit.images_per_pass / images == pytest.approx(passes, rel=0.05)


@pytest.mark.parametrize("minutes", [1, 2, 5, 15, 30, 60, 600])
@pytest.mark.parametrize("validation", [0.3, 12.0])
def test_a_time_is_kept_with_enough_steps_and_few_seconds_of_validation(minutes: float, validation: float) -> None:
    made = plan(minutes=minutes, validation=validation)
    crop, batch = made.settings.geometry.size, made.settings.fit.images_per_pass
    epochs, steps = made.settings.fit.epochs or 0, made.settings.fit.steps_per_epoch or 0
    step = 0.1 + SECONDS_OF_A_PIXEL * batch * crop[0] * crop[1] * (made.settings.model.width or 32) / 32
    seconds = START_SECONDS + epochs * (steps * step + validation)
    assert 0.85 * 60 * minutes < seconds < 1.01 * 60 * minutes
    assert epochs <= 40
    assert epochs == 1 or epochs * validation <= 0.16 * 60 * minutes
    if minutes >= 5:
        assert epochs * steps > 0.8 * ENOUGH_STEPS
    if minutes >= 30:
        assert (crop, batch) == ((320, 320), 8)
    assert f"{seconds / 60:.1f} minutes" in made.lines[-1]


def test_less_time_makes_batches_smaller_then_crops_then_the_network() -> None:
    shapes = []
    for minutes in (30, 10, 5, 2, 1):
        made = plan(minutes=minutes, validation=1.0).settings
        shapes.append((made.fit.batch_size, made.geometry.size[0], made.model.width))
    assert shapes == sorted(shapes, reverse=True)
    assert shapes[0] == (8, 320, 32)
    assert shapes[1] == (4, 320, 32)
    assert shapes[-1] == (4, 128, 16)


def test_little_time_makes_images_smaller_where_they_and_their_masks_bear_it() -> None:
    def shapes(**what: Any) -> list[tuple[Any, ...]]:
        made = (plan(minutes=minutes, validation=1.0, **what).settings for minutes in (30, 10, 4, 1))
        return [(each.crop, each.size, each.fit.batch_size, each.model.width) for each in made]

    half, third = (176, 240), (112, 144)
    streets = [((320, 320), None, 8, 32), (None, half, 8, 32), (None, half, 8, 32), (None, third, 8, 32)]
    assert shapes(kept=0.92) == streets
    textures = shapes(kept=0.92, images_kept=0.8)
    assert textures == shapes(kept=0.8)
    assert all(size is None for _, size, *_ in textures)
    assert all(size is None for _, size, *_ in shapes(size=(320, 400), kept=0.92))  # a crop shows all of them
    given = shapes(kept=0.92, settings={"crop": (128, 128)})
    assert {crop for crop, *_ in given} == {(128, 128)}
    long = plan(kept=0.92, minutes=600, machine=Machine(memory=3e9, cores=2)).settings
    assert (long.crop, long.fit.batch_size) == ((256, 256), 4)  # memory alone makes none of them smaller


def test_no_time_at_all_is_refused_with_what_would_do() -> None:
    with pytest.raises(RequestError, match=r"--minutes 0\.1: a step takes .* give at least 1, or smaller images"):
        plan(minutes=0.1)


@pytest.mark.parametrize("given", [{}, {"epochs": 50}, {"epochs": 3}, {"steps_per_epoch": 300}, {"steps_per_epoch": 7}])
def test_the_time_that_is_asked_for_is_enough(given: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="give at least ") as refused:
        plan(minutes=0.3, **given)
    enough = int(re.findall(r"give at least (\d+)", str(refused.value))[0])
    assert plan(minutes=enough, **given).settings.fit.epochs
    with pytest.raises(RequestError):
        plan(minutes=enough - 1.1, **given)


def test_little_memory_makes_batches_and_crops_smaller() -> None:
    fits = plan(machine=Machine(memory=10e9, cores=2)).settings
    tight = plan(machine=Machine(memory=3e9, cores=2)).settings
    assert (fits.fit.batch_size, fits.crop) == (8, (320, 320))
    assert (tight.fit.batch_size, tight.crop) == (4, (256, 256))
    many_classes = plan(classes=150, machine=Machine(memory=5e9, cores=2)).settings
    assert (many_classes.fit.batch_size, many_classes.crop) == (4, (256, 256))


@pytest.mark.parametrize("workers", ["1", "3", "2:4"])
def test_every_worker_has_a_share_of_each_pass(workers: str) -> None:
    planned = plan(images=40, settings={"workers": workers}, accumulate=2).settings
    assert planned.fit.images_per_pass >= planned.worker_range[1]
    assert plan(images=5).settings.fit.batch_size == 4
    assert plan(images=1).settings.fit.batch_size == 1


def test_five_lines_say_the_plan_and_what_was_given() -> None:
    lines = plan(minutes=30).lines
    assert len(lines) == 5
    assert lines[0] == "plan: 367 training images of 360 x 480 in the median, 11 classes; 2 cores, 10.0 GB"
    assert lines[1] == "plan: crops of 320 x 320 at native scale"
    assert lines[2].startswith("plan: batches of 8 images, a network of width 32; about ")
    assert "(given)" in plan(settings={"crop": (64, 64)}).lines[1]
    assert "(given)" in plan(batch_size=5).lines[2]
    assert "--minutes N" in plan().lines[-1]


def test_minutes_and_max_steps_are_two_lengths() -> None:
    with pytest.raises(RequestError, match="--minutes and --max-steps"):
        FitSettings(minutes=3, max_steps=4)
    with pytest.raises(RequestError, match="--minutes 0"):
        replace(FitSettings(), minutes=0)


def test_what_masks_keep_when_they_are_resized_is_asked_of_their_classes_alone(tmp_path: Path) -> None:
    write_set("street", tmp_path)
    labelled = find_labelled_set(DataSettings(data=str(tmp_path), classes="camvid"))
    run: Any = SimpleNamespace(labelled=labelled, labels=read_labels("camvid"), channels=RGB)
    assert kept_at(run, (192, 256)) == (1, 1)
    assert 0.5 < kept_at(run, (96, 128)).masks < 0.98
