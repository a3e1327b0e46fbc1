"""What is left open of a training run, planned from its set, its machine and its time: geometry, batch, width, length.

Pure: the set is what its check counted, the machine is a few numbers, and speeds are asked of a function. What is given
is kept. As in nnU-Net (Isensee et al., 2021) scale is native, and a crop has the shape of the median image as far as it
fits. Only images that keep what they show when they are resized, and whose masks do, are: large ones, and where time is
short others too.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from unet.model.settings import architecture
from unet.settings import RequestError
from unet.train.settings import TrainSettings

Size = tuple[int, int]
"""Height and width."""

CROP, CROP_GPU = 320 * 320, 512 * 512
"""Pixels of a crop. Smaller ones, at shares of `SMALLER`, where memory or time is short."""

SMALLER = 0.64, 0.36, 0.16
STEP, STEP_GPU = 8 * CROP, 16 * CROP_GPU
"""Pixels of a step: batches of 8 crops, on a GPU of 16. A batch has `MOST_IMAGES` at most."""

MOST_IMAGES, LEAST_IMAGES = 32, 4

WHOLE, MANY = 1.3, 4.0
"""Images of up to `WHOLE` crops are one crop; of those of over `MANY` it is asked whether they can be resized."""

KEPT_MASKS, KEPT_MASKS_HURRIED, KEPT_IMAGES = 0.98, 0.88, 0.92
"""Mean IoU of masks that were resized and back, with themselves, from which on whole images are resized; and share of
the variance of images: that of textures is in what resizing takes away."""

HURRIED = 0.4, 0.16
"""Shares of a crop's pixels that images of more than a crop are resized to where time is short. 40 images of CamVid, in
4 minutes on two cores, have a mean IoU of 0.57 so, 0.47 by small crops at native scale, and 0.54 at 128x128. Smaller
images, of which a crop shows all, learned as much or more at their own scale in smaller crops."""

ENOUGH_STEPS, ENOUGH_RESIZED, LEAST_STEPS = 400, 150, 20
"""Steps for which images, else batches and crops, then the network are made smaller; of images made smaller so, which
show more at once; and steps without which no run begins."""

PASSES, PASSES_GPU, MOST_STEPS, MOST_STEPS_GPU = 20, 200, 10_000, 40_000
"""Without a time: how often each image is seen, with at least `ENOUGH_STEPS` and at most so many."""

EPOCHS, MOST_EPOCHS, FEWEST_EPOCHS = 20, 40, 10
VALIDATING = 0.05
"""Share of the time that validations may take; with fewer than `FEWEST_EPOCHS` epochs three times as much."""

START_SECONDS = 10.0
"""From the plan to the first step: the workers start."""

BYTES_OF_WIDTH, BYTES_OF_CLASS, BYTES_OF_WORKER = 100, 48, 1 << 30
"""Memory of a step by pixel for each channel of --width in bf16, and for each class; and of a worker without a step.
Measured were 3,720 bytes a pixel at width 32 and 11 classes, 2,100 at width 16, 10,340 at width 32 and 150 classes, and
with a ResNet-50, whose U-Net is of width 16, 3,840: an encoder counts as much as the width."""


class Kept(NamedTuple):
    """What images and masks that are resized and back keep."""

    masks: float
    """Mean IoU with themselves."""
    images: float
    """Share of their variance."""


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """What a plan needs to know of a labelled set."""

    sizes: Counter[Size]
    """Training images by height and width."""
    images: int
    """Training images in all."""
    classes: int
    kept_at: Callable[[Size], Kept]
    """What is kept where images are resized to a size and back."""

    @property
    def median(self) -> Size:
        """The median height and the median width."""
        return _median(size[0] for size in self.sizes.elements()), _median(size[1] for size in self.sizes.elements())


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a worker has."""

    memory: float
    """Bytes, of its GPU or of its part of a machine."""
    cores: int
    gpu: bool = False


class Speed(NamedTuple):
    """How fast a worker trains."""

    step: float
    """Seconds of an optimizer step, its batch included."""
    validation: float
    """Seconds of a validation, and of what ends an epoch."""


class Plan(NamedTuple):
    """Settings of which nothing is left open, and the lines that say so."""

    settings: TrainSettings
    lines: tuple[str, ...]


def is_open(settings: TrainSettings) -> bool:
    """Return whether something is left open that a run cannot begin without, or a time is to be kept."""
    fit = settings.fit
    length = fit.epochs is None and fit.max_steps is None
    return length or fit.batch_size is None or not (settings.size or settings.crop) or fit.minutes is not None


def make_plan(
    settings: TrainSettings,
    facts: SetFacts,
    machine: Machine,
    measure: Callable[[TrainSettings], Speed],
    seconds_left: Callable[[], float],
) -> Plan:
    """Return the plan of a run. With --minutes `measure` says how fast settings train here, and `seconds_left` how much
    of the time is left.

    Raises:
        RequestError: there is no time for a run.
    """
    fitting = [option for option in _options(settings, facts, machine) if _bytes_of(option, facts) <= machine.memory]
    chosen, speed = (fitting or [*_options(settings, facts, machine)][-1:])[0], None
    if settings.fit.minutes is not None:
        speed = measure(chosen)
        work = _work_of(chosen)
        time = (seconds_left() - START_SECONDS - (settings.fit.epochs or 1) * speed.validation) / speed.step * work
        native, resized = (max(enough, settings.fit.steps_per_epoch or 0) for enough in (ENOUGH_STEPS, ENOUGH_RESIZED))
        if time < native * work:
            less = [option for option in _options(settings, facts, machine, hurried=True) if _work_of(option) < work]
            steps = [native if option.size == chosen.size else resized for option in less]
            enough = [each for each, of_it in zip(less, steps, strict=True) if time >= of_it * _work_of(each)]
            chosen = [*enough, (less or [chosen])[-1]][0]
            speed = measure(chosen)
        chosen = _with_time(chosen, speed, seconds_left() - START_SECONDS)
    chosen = _with_length(chosen, facts.images, machine)
    return Plan(chosen, tuple(_lines(settings, chosen, facts, machine, speed)))


def _options(
    settings: TrainSettings, facts: SetFacts, machine: Machine, *, hurried: bool = False
) -> Iterator[TrainSettings]:
    """Yield settings with geometry, batch and width, each with less work than the one before: smaller batches, then
    smaller crops, or if `hurried` smaller images where they can be resized; then a network of half the width."""
    pixels = CROP_GPU if machine.gpu else CROP
    network = settings.model
    open_width = network == replace(network, model="default", width=None, encoder=None) and not settings.fit.init_from
    width, divisor = architecture(network)["width"], 1 << architecture(network)["depth"]
    smaller = list[Size]()
    if not (settings.size or settings.crop):
        if (crops := math.prod(facts.median) / pixels) > MANY:
            settings = replace(settings, size=_resized(facts, pixels, divisor, KEPT_MASKS))
        shares = HURRIED if hurried and crops > WHOLE else ()
        found = [_resized(facts, share * pixels, divisor, KEPT_MASKS_HURRIED) for share in shares]
        smaller = [size for size in found if size is not None]
    most = _with_shapes(settings, facts, machine, pixels, MOST_IMAGES).fit.batch_size or 1
    if smaller:
        rungs = [(each, pixels, most) for each in (settings, *(replace(settings, size=size) for size in smaller))]
    else:
        batches = [most >> halved for halved in range(most.bit_length()) if most >> halved >= LEAST_IMAGES]
        rungs = [(settings, pixels, batch) for batch in batches or [most]]
        rungs += [(settings, int(share * pixels), LEAST_IMAGES) for share in SMALLER]
    widths = [width] * len(rungs) + [width // 2] * open_width
    seen = []
    for (shaped, area, batch), channels in zip([*rungs, rungs[-1]], widths, strict=False):
        option = _with_shapes(shaped, facts, machine, area, batch)
        if open_width:
            option = replace(option, model=replace(network, width=channels))
        if option not in seen:
            seen.append(option)
            yield option


def _with_shapes(settings: TrainSettings, facts: SetFacts, machine: Machine, pixels: int, most: int) -> TrainSettings:
    """Return settings with a geometry of about `pixels` and a batch of at most `most` images, where they are open."""
    if not (settings.size or settings.crop):
        divisor = 1 << architecture(settings.model)["depth"]
        settings = replace(settings, crop=_crop(facts.median, pixels, divisor))
    if settings.fit.batch_size is None:
        wanted = int(1.1 * (STEP_GPU if machine.gpu else STEP) / math.prod(settings.geometry.size))
        batch = _batch(min(most, wanted), facts.images, settings.fit.accumulate * settings.worker_range[1])
        settings = replace(settings, fit=replace(settings.fit, batch_size=batch))
    return settings


def _crop(median: Size, pixels: int, divisor: int) -> Size:
    """Return a crop of at most about `pixels`: the whole image, or a square of it, or all of its shorter side."""
    height, width = median
    if height * width > WHOLE * pixels:
        side = math.isqrt(pixels)
        short = min(side, *median)
        long = min(pixels // short, 4 * side)
        height, width = (min(height, long), short) if height > width else (short, min(width, long))
    return _rounded(height, divisor), _rounded(width, divisor)


def _resized(facts: SetFacts, pixels: float, divisor: int, kept: float) -> Size | None:
    """Return the size of about `pixels` that whole images are resized to; None if that would take what they show.
    `kept`: what their masks have to keep."""
    height, width = facts.median
    factor = math.sqrt(pixels / (height * width))
    size = _rounded(factor * height, divisor), _rounded(factor * width, divisor)
    found = facts.kept_at(size)
    return size if found.masks >= kept and found.images >= KEPT_IMAGES else None


def _batch(wanted: int, images: int, unit: int) -> int:
    """Return a multiple of `unit`, near a power of two of at most `wanted`, that leaves two steps a pass; two of `unit`
    at least, as far as there are images."""
    batch = 1 << (max(1, min(wanted, max(images // 2, LEAST_IMAGES))).bit_length() - 1)
    return unit * max(1, min(max(batch // unit, 2), images // unit))


def _with_time(settings: TrainSettings, speed: Speed, seconds: float) -> TrainSettings:
    """Return settings with as many epochs and steps as `seconds` have room for, where they are open."""
    fit = settings.fit
    epochs, steps = fit.epochs, fit.steps_per_epoch
    if epochs is not None and steps is not None:
        return settings
    if epochs is None and steps is None:
        often = max(0.0, seconds) * VALIDATING / speed.validation
        epochs = max(1, int(min(MOST_EPOCHS, max(often, min(FEWEST_EPOCHS, 3 * often)))))
    if epochs is None:
        assert steps is not None
        epochs = int(seconds / (steps * speed.step + speed.validation))
    if steps is None:
        steps = int((seconds - epochs * speed.validation) / speed.step) // max(1, epochs)
    if epochs * steps < LEAST_STEPS:
        each = fit.steps_per_epoch or -(-LEAST_STEPS // max(1, epochs))
        passes = -(-LEAST_STEPS // each) if fit.steps_per_epoch else max(1, epochs)
        more = (fit.minutes or 0) + (passes * (speed.validation + each * speed.step) - seconds) / 60
        raise RequestError(
            f"--minutes {fit.minutes:g}: a step takes {speed.step:.2f} s here, and a validation {speed.validation:.1f} "
            f"s, which leaves {max(0, epochs * steps)} steps; give at least {math.ceil(more)}, or smaller images"
        )
    return replace(settings, fit=replace(fit, epochs=epochs, steps_per_epoch=steps))


def _with_length(settings: TrainSettings, images: int, machine: Machine) -> TrainSettings:
    """Return settings with a number of epochs and steps, where they are open still."""
    fit = settings.fit
    if fit.epochs is None and fit.steps_per_epoch is None and fit.max_steps is None:
        passes, most = (PASSES_GPU, MOST_STEPS_GPU) if machine.gpu else (PASSES, MOST_STEPS)
        steps = min(max(passes * -(-images // (fit.batch_size or 1)), ENOUGH_STEPS), most)
        fit = replace(fit, steps_per_epoch=-(-steps // EPOCHS))
    return replace(settings, fit=replace(fit, epochs=fit.epochs or EPOCHS))


def _lines(
    given: TrainSettings, planned: TrainSettings, facts: SetFacts, machine: Machine, speed: Speed | None
) -> Iterator[str]:
    fit, geometry, width = planned.fit, planned.geometry, architecture(planned.model)["width"]
    height, breadth = facts.median
    memory = _gigabytes(machine.memory)
    has = f"a GPU of {memory}" if machine.gpu else f"{machine.cores} cores, {memory}"
    yield f"plan: {facts.images} training images of {height} x {breadth} in the median, {facts.classes} classes; {has}"
    how = "crops of {} x {} at native scale" if geometry.kind == "native" else "whole images, resized to {} x {}"
    kept = " (given)" if given.size or given.crop else ""
    yield f"plan: {how.format(*geometry.size)}{kept}"
    kept = " (given)" if given.fit.batch_size else ""
    memory = _gigabytes(_bytes_of(planned, facts))
    yield f"plan: batches of {fit.batch_size} images{kept}, a network of width {width}; about {memory} a worker"
    steps = fit.steps_per_epoch or -(-facts.images // (fit.batch_size or 1))
    total = fit.max_steps or (fit.epochs or 0) * steps
    seen = total * (fit.batch_size or 0) / facts.images
    yield f"plan: {-(-total // steps)} epochs of {steps} steps, which show each image {seen:.0f} times"
    if speed is None:
        yield "plan: as long as that takes; --minutes N plans the run for a time"
    else:
        minutes = (START_SECONDS + total * speed.step + total / steps * speed.validation) / 60
        given_both = given.fit.epochs is not None and given.fit.steps_per_epoch is not None
        yield (
            f"plan: {speed.step:.2f} s a step and {speed.validation:.1f} s a validation, measured here: "
            f"{minutes:.1f} minutes from now on{', whatever --minutes says' if given_both else ''}"
        )


def planned_values(given: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
    """Return what a plan added to the settings that were given."""
    return {name: value for name, value in planned.items() if given[name] is None and value is not None}


def _bytes_of(settings: TrainSettings, facts: SetFacts) -> float:
    """Return about how much memory a worker needs."""
    fit, narrow = settings.fit, settings.gpu or settings.fit.precision in ("bf16", "fp16")
    images = -(-settings.fit.images_per_pass // settings.worker_range[1])
    width: int = architecture(settings.model)["width"] * (1 if narrow and fit.precision != "fp32" else 2)
    width *= 1 if settings.model.encoder is None else 2
    of_a_pixel = BYTES_OF_WIDTH * width + BYTES_OF_CLASS * facts.classes
    return BYTES_OF_WORKER + images * math.prod(settings.geometry.size) * of_a_pixel


def _work_of(settings: TrainSettings) -> float:
    """Return what the seconds of a step are about proportional to."""
    width: int = architecture(settings.model)["width"]
    return (
        settings.fit.images_per_pass
        * settings.fit.accumulate
        * math.prod(settings.geometry.size)
        * math.pow(width, 1.5)
    )


def _rounded(length: float, divisor: int) -> int:
    return max(divisor, round(length / divisor) * divisor, 8)


def _median(lengths: Iterator[int]) -> int:
    ordered = sorted(lengths)
    return ordered[len(ordered) // 2]


def _gigabytes(memory: float) -> str:
    return f"{memory / 1e9:.1f} GB"
