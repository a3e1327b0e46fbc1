"""The loop that each training worker runs.

It obeys a `Run`, which the driver has decided. One plan of Ray Data feeds it from its first step to its last,
validations included, in the order that `schedule` fixes; a checkpoint after each epoch lets it go on from there.
"""

import itertools
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray.train
import ray.train.torch
import torch

from unet import storage
from unet.artifact import Model
from unet.datasets import Batch, View, Work, batches
from unet.journal import Entry, Journal
from unet.labelled_set import LabelledSet
from unet.labels import LabelSet
from unet.learner import Learner
from unet.loss import LossSums
from unet.memory import keep_freed_memory
from unet.metrics import ConfusionMatrix
from unet.model import UNet, architecture
from unet.optimizer import learning_rate
from unet.progress import Progress
from unet.schedule import draws_of_step
from unet.settings import RequestError, TrainSettings, to_mapping


@dataclass(frozen=True)
class Run:
    """All that the driver has decided."""

    settings: TrainSettings
    folder: str
    labelled: LabelledSet
    labels: LabelSet
    class_weights: tuple[float, ...] | None
    data_cpus: float = 1.0
    threads: int = 1
    terminal: bool = False

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

    def steps_of(self, epoch: int) -> range:
        """The steps of an epoch (from 0)."""
        first = epoch * self.steps_per_epoch
        return range(first, min(first + self.steps_per_epoch, self.total_steps))

    def validation(self) -> list[Work]:
        """Every validation image once; images of native geometry, whose sizes differ, one by one."""
        pairs, settings = self.labelled.val, self.settings
        size = settings.fit.batch_size if settings.geometry.kind == "resize" else 1
        return [Work(pairs[start : start + size]) for start in range(0, len(pairs), size)]

    def work(self, epoch: int) -> Iterator[Work]:
        """What remains to be done from the start of an epoch."""
        pairs, settings = self.labelled.train, self.settings.fit
        for later in range(epoch, self.epochs):
            for step in self.steps_of(later):
                draws = draws_of_step(step, seed=settings.seed, rows=len(pairs), batch=settings.batch_size)
                yield Work(tuple(pairs[draw.row] for draw in draws), tuple(draws))
            yield from self.validation()


def fit(config: dict[str, Run]) -> None:
    """What each training worker runs."""
    run = config["run"]
    keep_freed_memory()
    if not run.settings.gpu:
        torch.set_num_threads(run.threads)  # Ray allows one thread per reserved CPU
    learner = _learner(run)
    first = _restore(learner)
    journal = Journal(run.folder, epochs=first)
    view = View(run.labels, run.settings.geometry, run.settings.augment, run.settings.fit.seed)
    stream = batches(run.work(first), view, cpus=run.data_cpus)
    progress = Progress(run.total_steps, run.epochs, run.settings.fit.batch_size, terminal=run.terminal)
    for epoch in range(first, run.epochs):
        if _out_of_patience(journal.entries, run.settings.fit.patience):
            print(f"no better validation mIoU for {run.settings.fit.patience} epochs: stopping early")
            break
        started = time.monotonic()
        train_loss, rate = _train_epoch(learner, itertools.islice(stream, len(run.steps_of(epoch))), epoch, progress)
        loss, matrix = _validate(learner, itertools.islice(stream, len(run.validation())), run)
        if not math.isfinite(loss):
            raise RequestError(_not_finite("validation loss", epoch, learner.step))
        entry = _entry(run, learner, epoch, matrix, train_loss, loss) | {
            "images_per_second": rate,
            "seconds": time.monotonic() - started,
        }
        progress.say_epoch(entry)
        best = max((earlier["val_miou"] or 0.0 for earlier in journal.entries), default=-1.0)
        journal.add(entry)
        if matrix.mean_iou > best or not journal.entries[:-1]:
            _model(run, learner, entry, matrix).save(storage.join(run.folder, "model"))
        _report_checkpoint(learner, entry)


def _train_epoch(learner: Learner, stream: Iterable[Batch], epoch: int, progress: Progress) -> tuple[float, float]:
    """Mean loss, and images per second."""
    losses, images, started = [], 0, time.monotonic()
    for batch in stream:
        losses.append(learner.train_step(torch.tensor(batch.images), torch.tensor(batch.masks)))
        images += len(batch.images)
        if progress.due(learner.step):
            _check_finite(losses, learner, epoch)
            progress.say_step(learner.step, epoch, float(losses[-1]))
    _check_finite(losses, learner, epoch)
    return float(torch.stack(losses).mean()), images / (time.monotonic() - started)


def _validate(learner: Learner, stream: Iterable[Batch], run: Run) -> tuple[float, ConfusionMatrix]:
    """Loss over all validation pixels, and their confusion matrix."""
    matrix = ConfusionMatrix.empty(len(run.labels.classes))
    sums: LossSums | None = None
    for batch in stream:
        more, prediction = learner.evaluate(torch.tensor(batch.images), torch.tensor(batch.masks))
        sums = more if sums is None else LossSums(*(a + b for a, b in zip(sums, more, strict=True)))
        matrix.add(batch.masks, prediction.numpy())
    assert sums is not None  # there is no run without a validation image
    return float(learner.loss_of(sums)), matrix


def _learner(run: Run) -> Learner:
    settings = run.settings
    torch.manual_seed(settings.fit.seed)
    network = UNet(classes=len(run.labels.classes), **architecture(settings.model))
    if settings.fit.init_from is not None:
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
    )


def _entry(
    run: Run, learner: Learner, epoch: int, matrix: ConfusionMatrix, train_loss: float, val_loss: float
) -> Entry:
    return {
        "epoch": epoch + 1,
        "step": learner.step,
        "train_loss": train_loss,
        "val_loss": val_loss,
        "val_pixel_accuracy": matrix.pixel_accuracy,
        "val_miou": matrix.mean_iou,
        "val_mdice": matrix.mean_dice,
        "val_iou": dict(zip(run.labels.names, matrix.iou.tolist(), strict=True)),
        "val_dice": dict(zip(run.labels.names, matrix.dice.tolist(), strict=True)),
        "learning_rate": learning_rate(learner.step - 1, run.settings.fit, run.total_steps),
    }


def _restore(learner: Learner) -> int:
    """The number of finished epochs."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", weights_only=True, map_location=learner.device)
    learner.load_state_dict(state["learner"])
    print(f"going on after epoch {state['epoch']}, step {learner.step}")
    return int(state["epoch"])


def _report_checkpoint(learner: Learner, entry: Entry) -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"epoch": entry["epoch"], "learner": learner.state_dict()}, Path(folder) / "state.pt")
        ray.train.report(entry, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _check_finite(losses: list[torch.Tensor], learner: Learner, epoch: int) -> None:
    finite = torch.isfinite(torch.stack(losses)) if losses else torch.ones(1)
    if not finite.all():
        step = learner.step - len(losses) + int((~finite.bool()).nonzero()[0]) + 1
        raise RequestError(_not_finite("loss", epoch, step))


def _not_finite(what: str, epoch: int, step: int) -> str:
    return (
        f"the {what} is not finite at epoch {epoch + 1}, step {step}; lower --lr or --clip, or check the labels. "
        "The model folder keeps the best model so far"
    )


def _out_of_patience(entries: list[Entry], patience: int) -> bool:
    scores = [entry["val_miou"] or 0.0 for entry in entries]
    return bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience
