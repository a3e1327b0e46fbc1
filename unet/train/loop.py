"""The loop that each training worker runs.

It obeys a `Run`, which the driver has decided. One stream of batches feeds it from its first step to its last,
validations included, in the order that `schedule` fixes; a checkpoint every so many steps lets it go on from there.
Every worker has its share of each batch and of the validation images; the first one writes what a run leaves.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import ray
import ray.train
import ray.train.torch
import torch

from unet.data.labelled_set import LabelledSet
from unet.data.labels import LabelSet
from unet.model.artifact import Model
from unet.model.metrics import ConfusionMatrix
from unet.model.network import UNet, architecture
from unet.runtime import telemetry
from unet.runtime.memory import retain_freed_memory
from unet.runtime.priority import silence_siblings, take_precedence
from unet.settings import RequestError, Window, to_mapping
from unet.storage.listed import join
from unet.train.batches import Batch, BatchRequest, BatchSpec, BatchStream
from unet.train.checkpoint import Checkpoints
from unet.train.journal import Entry, Journal, without_nan
from unet.train.learner import Learner
from unet.train.loss import LossSums
from unet.train.optimizer import learning_rate
from unet.train.progress import Audience, Progress
from unet.train.ranks import all_reduce_sum, broadcast_object, rank, world_size
from unet.train.schedule import samples_of_step, share
from unet.train.settings import TrainSettings


@dataclass(frozen=True)
class Run:
    """All that the driver has decided."""

    settings: TrainSettings
    folder: str
    labelled: LabelledSet
    labels: LabelSet
    class_weights: tuple[float, ...] | None
    data_cpus: int = 0
    """CPUs that each worker's data tasks have to themselves; 0 where they run beside training."""
    terminal: bool = False
    local: bool = False
    """Ray was started for this run alone."""
    largest: tuple[int, int] = (0, 0)
    """Height and width of the largest validation image seen."""
    window: Window | None = None
    """How 16-bit images are scaled."""

    @property
    def steps_per_epoch(self) -> int:
        images, batch = len(self.labelled.train), self.settings.fit.batch_size
        return self.settings.fit.steps_per_epoch or -(-images // batch)

    @property
    def total_steps(self) -> int:
        steps = self.settings.fit.epochs * self.steps_per_epoch
        return min(steps, self.settings.fit.max_steps or steps)

    @property
    def epochs(self) -> int:
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def view(self) -> BatchSpec:
        settings = self.settings
        return BatchSpec(self.labels, settings.geometry, settings.augment, settings.fit.seed, self.largest, self.window)

    def steps_of(self, epoch: int, first: int = 0) -> range:
        """The steps of an epoch (from 0), from step `first` on."""
        begin = epoch * self.steps_per_epoch
        return range(max(first, begin), min(begin + self.steps_per_epoch, self.total_steps))

    def validation(self) -> list[BatchRequest]:
        """This rank's validation images, each once; images of native geometry, whose sizes differ, one by one."""
        pairs, settings = share(self.labelled.val, rank(), world_size()), self.settings
        size = settings.fit.batch_size if settings.geometry.kind == "resize" else 1
        return [BatchRequest(tuple(pairs[start : start + size])) for start in range(0, len(pairs), size)]

    def work(self, epoch: int, step: int) -> Iterator[BatchRequest]:
        """What remains to be done by this rank, from a step of an epoch on."""
        pairs, settings = self.labelled.train, self.settings.fit
        for later in range(epoch, self.epochs):
            for number in self.steps_of(later, step):
                draws = samples_of_step(number, seed=settings.seed, rows=len(pairs), batch=settings.batch_size)
                part = settings.batch_size // settings.accumulate  # of which each rank has its share
                parts = [draws[first : first + part] for first in range(0, len(draws), part)]
                mine = [draw for drawn in parts for draw in share(drawn, rank(), world_size())]
                yield BatchRequest(tuple(pairs[draw.row] for draw in mine), tuple(mine))
            yield from self.validation()


@dataclass
class Position:
    """How far a run is, beside what its learner knows."""

    entries: list[Entry]
    """One for each finished epoch."""
    losses: list[torch.Tensor] = field(default_factory=list)
    """One for each step since."""


def fit(config: dict[str, Run]) -> None:
    """What each training worker runs."""
    run = config["run"]
    retain_freed_memory()
    take_precedence()
    threads = _threads()
    if not run.settings.gpu:
        torch.set_num_threads(threads)
    feed = BatchStream(run.view, tasks=run.data_cpus or threads, workers=world_size(), anywhere=run.data_cpus > 0)
    with Checkpoints(run.folder) as checkpoints:
        latest = broadcast_object(checkpoints.latest() if rank() == 0 else None)  # all go on from one and the same
        learner = _learner(run, begun=latest is not None)
        position = _restore(learner, checkpoints, latest)
        first = len(position.entries)
        journal = Journal(run.folder, position.entries) if rank() == 0 else None
        stream = feed.batches(run.work(first, learner.step))
        progress = Progress(run.total_steps, run.epochs, run.settings.fit.batch_size, _audience(run))
        for epoch in range(first, run.epochs):
            if _out_of_patience(position.entries, run.settings.fit.patience):
                progress.say(f"no better validation mIoU for {run.settings.fit.patience} epochs: stopping early")
                break
            started = time.monotonic()
            rate = _train_epoch(run, learner, stream, position, checkpoints, progress)
            loss, matrix = _validate(learner, itertools.islice(stream, len(run.validation())), run)
            if not math.isfinite(loss):
                raise RequestError(_not_finite("validation loss", epoch, learner.step))
            entry = _entry(run, learner, position, matrix, loss) | {
                "images_per_second": rate,
                "seconds": time.monotonic() - started,
            }
            progress.log_epoch(entry)
            if journal is not None:
                telemetry.record_epoch(entry, run.settings.name)
                journal.add(entry)
                if _is_best(entry, position.entries):
                    _model(run, learner, entry, matrix).save(join(run.folder, "model"))
            position = Position([*position.entries, entry])
            _save(learner, position, checkpoints)


def _audience(run: Run) -> Audience:
    if rank() > 0:
        return "nobody"
    return "terminal" if run.terminal else "log"


def _threads() -> int:
    """This worker's part of its machine; Ray would allow one thread for each reserved CPU."""
    here = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == here)
    workers_here: int = ray.train.get_context().get_local_world_size()
    return max(1, int(cpus) // workers_here)


def _train_epoch(
    run: Run,
    learner: Learner,
    stream: Iterator[Batch],
    position: Position,
    checkpoints: Checkpoints,
    progress: Progress,
) -> float:
    """Takes the steps that remain of an epoch; returns images per second."""
    if run.local and not run.settings.gpu:
        silence_siblings()
    epoch, every, started = len(position.entries), run.settings.checkpoint_every, time.monotonic()
    told = learner.step
    steps = run.steps_of(epoch, learner.step)
    for step in steps:
        batch = next(stream)
        position.losses.append(learner.train_step(torch.tensor(batch.images), torch.tensor(batch.masks)))
        if progress.due(learner.step):
            _check_finite(learner, position)
            progress.log_step(learner.step, epoch, float(position.losses[-1]))
            told = _tell(run, learner, told, position)
        if every and learner.step % every == 0 and step != steps[-1]:
            _save(learner, position, checkpoints)
    _check_finite(learner, position)
    if steps:
        _tell(run, learner, told, position)
    return len(steps) * run.settings.fit.batch_size / (time.monotonic() - started)


def _tell(run: Run, learner: Learner, told: int, position: Position) -> int:
    """Tells of the steps since step `told`, and of the last epoch again; returns the step it told of."""
    if rank() == 0:
        images = (learner.step - told) * run.settings.fit.batch_size
        telemetry.record_steps(images, float(position.losses[-1]), run.settings.name)
        for entry in position.entries[-1:]:
            telemetry.record_epoch(entry, run.settings.name)
    return learner.step


def _validate(learner: Learner, stream: Iterable[Batch], run: Run) -> tuple[float, ConfusionMatrix]:
    """Loss over all validation pixels of all ranks, and their confusion matrix."""
    learner.agree()
    matrix = ConfusionMatrix.empty(len(run.labels.classes))
    sums = LossSums.zeros(len(run.labels.classes), learner.device)
    for batch in stream:
        more, prediction = learner.evaluate(torch.tensor(batch.images), torch.tensor(batch.masks))
        sums = LossSums(*(a + b for a, b in zip(sums, more, strict=True)))
        matrix.add(batch.masks, prediction.numpy())
    loss = float(learner.loss_of(LossSums(*all_reduce_sum(sums))))
    counts = torch.from_numpy(matrix.counts).to(learner.device)
    return loss, ConfusionMatrix(all_reduce_sum([counts])[0].cpu().numpy())


def _restore(learner: Learner, checkpoints: Checkpoints, name: str | None) -> Position:
    if name is None:
        return Position([])
    state = checkpoints.load(name, learner.device)
    learner.load_state_dict(state["learner"])
    if rank() == 0:
        hands = f"{world_size()} worker{'s' * (world_size() > 1)}"
        print(f"going on after step {learner.step}, {len(state['entries'])} epochs finished, {hands}", flush=True)
    return Position(state["entries"], list(state["losses"].to(learner.device)))


def _save(learner: Learner, position: Position, checkpoints: Checkpoints) -> None:
    _check_finite(learner, position)
    if not learner.is_finite():
        raise RequestError(_not_finite("gradient", len(position.entries), learner.step))
    learner.agree()
    if rank() == 0:
        losses = torch.stack(position.losses).cpu() if position.losses else torch.zeros(0)
        state = {"learner": learner.state_dict(), "entries": position.entries, "losses": losses}
        checkpoints.save(learner.step, state)


def _learner(run: Run, *, begun: bool) -> Learner:
    settings = run.settings
    torch.manual_seed(settings.fit.seed)
    network = UNet(classes=len(run.labels.classes), **architecture(settings.model))
    if settings.fit.init_from is not None and not begun:
        fitting = fitting_tensors(Model.load(settings.fit.init_from, "--init-from"), network, run.labels)
        print(f"--init-from: {len(fitting)} of {len(network.state_dict())} tensors taken")
        network.load_state_dict(fitting, strict=False)
    weights = None if run.class_weights is None else torch.tensor(run.class_weights)
    return Learner(
        network,
        settings.fit,
        total_steps=run.total_steps,
        class_weights=weights,
        device=ray.train.torch.get_device(),
    )


def fitting_tensors(model: Model, network: UNet, labels: LabelSet) -> dict[str, torch.Tensor]:
    """Weights of `model` that `network` can start from: of equal name and shape; the head only for equal classes."""
    given = model.network.state_dict()
    return {
        name: given[name]
        for name, tensor in network.state_dict().items()
        if name in given
        and given[name].shape == tensor.shape
        and (model.labels.names == labels.names or not name.startswith("head."))
    }


def _model(run: Run, learner: Learner, entry: Entry, matrix: ConfusionMatrix) -> Model:
    return Model(
        network=learner.average,
        labels=run.labels,
        geometry=run.settings.geometry,
        training=to_mapping(run.settings) | {"images": len(run.labelled.train), "steps_done": learner.step},
        scores={name: value for name, value in entry.items() if name == "epoch" or name.startswith("val_")}
        | {"confusion": matrix.counts.tolist()},
        window=run.window,
    )


def _entry(run: Run, learner: Learner, position: Position, matrix: ConfusionMatrix, val_loss: float) -> Entry:
    entry: Entry = without_nan(
        {
            "epoch": len(position.entries) + 1,
            "step": learner.step,
            "train_loss": float(torch.stack(position.losses).mean()),
            "val_loss": val_loss,
            "val_pixel_accuracy": matrix.pixel_accuracy,
            "val_miou": matrix.mean_iou,
            "val_mdice": matrix.mean_dice,
            "val_iou": dict(zip(run.labels.names, matrix.iou.tolist(), strict=True)),
            "val_dice": dict(zip(run.labels.names, matrix.dice.tolist(), strict=True)),
            "learning_rate": learning_rate(learner.step - 1, run.settings.fit, run.total_steps),
        }
    )
    return entry


def _check_finite(learner: Learner, position: Position) -> None:
    finite = torch.isfinite(torch.stack(position.losses)) if position.losses else torch.ones(1, dtype=torch.bool)
    if not finite.all():
        step = learner.step - len(position.losses) + int((~finite).nonzero()[0]) + 1
        raise RequestError(_not_finite("loss", len(position.entries), step))


def _not_finite(what: str, epoch: int, step: int) -> str:
    return (
        f"the {what} is not finite at epoch {epoch + 1}, step {step}; lower --lr or --clip, or check the labels. "
        "The model folder keeps the best model so far"
    )


def _is_best(entry: Entry, earlier: list[Entry]) -> bool:
    scores = [before["val_miou"] or 0.0 for before in earlier]
    return not scores or (entry["val_miou"] or 0.0) > max(scores)


def _out_of_patience(entries: list[Entry], patience: int) -> bool:
    scores = [entry["val_miou"] or 0.0 for entry in entries]
    return bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience
