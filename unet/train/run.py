"""A training run as the driver has decided it, the same for every worker: its settings, its set, and its steps."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from unet.data.channels import RGB, Channels
from unet.data.drift import ImageStatistics
from unet.data.labelled_set import LabelledSet
from unet.data.labels import LabelSet
from unet.train.examples import BatchRequest, BatchSpec
from unet.train.schedule import samples_of_step, share
from unet.train.settings import TrainSettings

CLASS_MIX, OFTEN = 0.5, 50
"""What --class-mix is where each image is shown so often. 40 images of CamVid that are shown 85 times teach more so;
367 that are shown 9 times, less."""


@dataclass(frozen=True)
class TrainingRun:
    """Steps and epochs are numbered from 0 over the whole run."""

    settings: TrainSettings
    folder: str
    labelled: LabelledSet
    labels: LabelSet
    class_weights: tuple[float, ...] | None
    data_cpus: int = 0
    """CPUs that the making of each worker's batches has to itself; 0 where they run beside training."""
    terminal: bool = False
    """Whether the driver has a terminal to draw a bar on."""
    largest: tuple[int, int] = (0, 0)
    """Height and width of the largest validation image seen."""
    channels: Channels = RGB
    reference: ImageStatistics | None = None
    """What its training images are like."""
    left_out: tuple[str, ...] = ()
    """Images of the damaged pairs that are left out."""

    reserved: dict[str, float] = field(default_factory=dict)
    """What each worker reserves of its machine, for Ray."""
    driver: str = field(default_factory=partial(secrets.token_hex, 8))
    """Of the command that trains: where another has begun since in the same folder, this one ends."""
    planned: dict[str, Any] = field(default_factory=dict)
    """Of its settings, by name, what was left open and is planned."""

    @property
    def batch_size(self) -> int:
        """Images of an optimizer step."""
        return self.settings.fit.images_per_pass * self.settings.fit.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last one may have fewer."""
        return self.settings.fit.steps_per_epoch or -(-len(self.labelled.train) // self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.settings.fit.max_steps or (self.settings.fit.epochs or 0) * self.steps_per_epoch

    @property
    def epochs(self) -> int:
        """Epochs of the run."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def batch_spec(self) -> BatchSpec:
        """How its pairs become arrays."""
        settings, augment = self.settings, self.settings.augment
        if augment.class_mix is None:
            shown = self.total_steps * self.batch_size / len(self.labelled.train)
            augment = replace(augment, class_mix=CLASS_MIX if shown >= OFTEN else 0.0)
        return BatchSpec(self.labels, settings.geometry, augment, settings.fit.seed, self.largest, self.channels)

    def steps_of(self, epoch: int, first: int = 0) -> range:
        """Return the steps of an epoch, from step `first` on."""
        begin = epoch * self.steps_per_epoch
        return range(max(first, begin), min(begin + self.steps_per_epoch, self.total_steps))

    def validation_requests(self, rank: int, world: int) -> list[BatchRequest]:
        """Return a rank's validation images, each once; those of native geometry, whose sizes differ, one by one."""
        pairs, settings = share(self.labelled.val, rank, world), self.settings
        size = self.batch_size if settings.geometry.kind == "resize" else 1
        return [BatchRequest(tuple(pairs[start : start + size])) for start in range(0, len(pairs), size)]

    def training_request(self, step: int, rank: int, world: int) -> BatchRequest:
        """Return a rank's part of the batch of a step."""
        pairs, settings = self.labelled.train, self.settings.fit
        drawn = {"seed": settings.seed, "rows": len(pairs), "batch": self.batch_size}
        samples = [*samples_of_step(step, **drawn), samples_of_step(step + 1, **drawn)[0]]
        size = settings.images_per_pass  # of a forward pass, of which each rank has its share
        passes = [range(first, first + size) for first in range(0, self.batch_size, size)]
        own = [place for part in passes for place in share(part, rank, world)]
        partners = tuple((pairs[samples[place + 1].row], samples[place + 1]) for place in own)
        return BatchRequest(
            tuple(pairs[samples[place].row] for place in own), tuple(samples[place] for place in own), partners
        )


@dataclass(frozen=True)
class RemainingRequests:
    """The batches that remain for a rank from step `step` of epoch `epoch` on, each epoch's validation behind it."""

    run: TrainingRun
    epoch: int
    step: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[BatchRequest]:
        validation = self.run.validation_requests(self.rank, self.world)
        for epoch in range(self.epoch, self.run.epochs):
            for step in self.run.steps_of(epoch, self.step):
                yield self.run.training_request(step, self.rank, self.world)
            yield from validation
