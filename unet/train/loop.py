"""The loop that each training worker runs.

It obeys a `TrainingRun`. One stream of batches feeds it from its first step to its last, validations included, in the
order that `schedule` fixes; a checkpoint every so many steps lets it go on from there. Every worker has its share of
each batch and of the validation images; rank 0 writes what a run leaves.
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch

from unet.data.drift import ImageStatistics
from unet.model.artifact import Model
from unet.model.metrics import ConfusionMatrix, nan_to_none
from unet.model.predictor import Predictor
from unet.runtime import telemetry
from unet.runtime.memory import retain_freed_memory
from unet.settings import RequestError, to_mapping
from unet.storage.objects import join_uri
from unet.train.batches import BatchStream
from unet.train.beginning import first_network, new_network
from unet.train.checkpoint import Checkpoints
from unet.train.examples import Batch
from unet.train.journal import Entry, Journal
from unet.train.learner import Learner
from unet.train.loss import LossSums
from unet.train.optimizer import learning_rate
from unet.train.progress import Audience, Progress
from unet.train.ranks import all_reduce_sum, broadcast_object, rank, world_size
from unet.train.run import RemainingRequests, TrainingRun
from unet.train.validation import validate


def train_worker(config: dict[str, TrainingRun]) -> None:
    """Train as `config["run"]` says, from its latest checkpoint on: what Ray Train calls in each worker."""
    run = config["run"]
    retain_freed_memory()
    threads = _threads()
    if not run.settings.gpu:
        torch.set_num_threads(threads)
    stream = BatchStream(
        run.batch_spec, processes=run.data_cpus or threads, workers=world_size(), anywhere=run.data_cpus > 0
    )
    with Checkpoints(run.folder, run.driver) as checkpoints:
        latest = broadcast_object(checkpoints.latest() if rank() == 0 else None)  # all go on from one and the same
        loop = TrainingLoop(run, checkpoints, latest, ray.train.torch.get_device())
        loop.train(stream.batches(RemainingRequests(run, len(loop.entries), loop.learner.step, rank(), world_size())))


def _threads() -> int:
    """Return this worker's part of its machine's CPUs; Ray would allow one thread for each reserved CPU."""
    here = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == here)
    workers_here: int = ray.train.get_context().get_local_world_size()
    return max(1, int(cpus) // workers_here)


class TrainingLoop:
    """A run on its way, restored from the checkpoint `latest` if there is one.

    `entries`: one for each finished epoch. `losses`: one for each step since, scalars on the device.
    """

    def __init__(self, run: TrainingRun, checkpoints: Checkpoints, latest: str | None, device: torch.device) -> None:
        self.run, self.checkpoints = run, checkpoints
        self.learner = _learner(run, device, begun=latest is not None)
        self.entries: list[Entry] = []
        self.losses: list[torch.Tensor] = []
        if latest is not None:
            self._restore(latest)
        self.journal = Journal(run.folder, self.entries) if rank() == 0 else None
        audience: Audience = "nobody" if rank() > 0 else "terminal" if run.terminal else "log"
        self.progress = Progress(run.total_steps, run.epochs, run.batch_size, audience)
        self.progress.log(f"training in {self.learner.precision} on {device.type}")

    def train(self, batches: Iterator[Batch]) -> None:
        """Take all steps that remain; `batches` are those of `RemainingRequests`."""
        run, patience = self.run, self.run.settings.fit.patience
        for epoch in range(len(self.entries), run.epochs):
            if _out_of_patience(self.entries, patience):
                self.progress.log(f"no better validation mIoU for {patience} epochs: stopping early")
                break
            started = time.monotonic()
            rate = self._train_epoch(epoch, batches)
            self._save()  # so that a death in validation loses no step; it averages the buffers too
            loss, matrix, reference = self._validate(
                itertools.islice(batches, len(run.validation_requests(rank(), world_size())))
            )
            if not math.isfinite(loss):
                raise RequestError(_not_finite("validation loss", epoch, self.learner.step))
            speed = {"images_per_second": rate, "seconds": time.monotonic() - started}
            entry = self._entry(loss, matrix) | speed
            self.progress.log_epoch(entry)
            if self.journal is not None:
                self.checkpoints.check_driver()
                telemetry.record_epoch(entry, run.settings.name)
                self.journal.add(entry)
                if _is_best(entry, self.entries):
                    model = replace(self._model(), scores=_scores(entry, matrix), reference=reference)
                    model.save(join_uri(run.folder, "model"))
            self.entries.append(entry)
            self.losses = []
            self._save()

    def _train_epoch(self, epoch: int, batches: Iterator[Batch]) -> float:
        """Take the steps that remain of an epoch; return images per second."""
        every, started, reported = self.run.settings.checkpoint_every, time.monotonic(), self.learner.step
        steps = self.run.steps_of(epoch, self.learner.step)
        for step, batch in zip(steps, itertools.islice(batches, len(steps)), strict=True):
            self.losses.append(self.learner.train_step(torch.from_numpy(batch.images), torch.from_numpy(batch.masks)))
            if self.progress.due(self.learner.step):
                self._check_finite()
                self.progress.log_step(self.learner.step, epoch, float(self.losses[-1]))
                reported = self._record_steps(reported)
            if every and self.learner.step % every == 0 and step != steps[-1]:
                self._save()
        self._check_finite()
        if steps:
            self._record_steps(reported)
        return len(steps) * self.run.batch_size / (time.monotonic() - started)

    def _record_steps(self, reported: int) -> int:
        """Record the steps since `reported`, and the last epoch again; return the step that is reported now."""
        if rank() == 0:
            images = (self.learner.step - reported) * self.run.batch_size
            telemetry.record_steps(images, float(self.losses[-1]), self.run.settings.name)
            for entry in self.entries[-1:]:
                telemetry.record_epoch(entry, self.run.settings.name)
        return self.learner.step

    def _validate(self, batches: Iterator[Batch]) -> tuple[float, ConfusionMatrix, ImageStatistics | None]:
        """Return the loss over all validation pixels of all ranks, their confusion matrix, and the reference of the run
        with what their masks are like."""
        predictor = Predictor(self._model(), device=self.learner.device, precision=self.learner.precision)
        scored = validate(predictor, self.learner.sums_of, batches)
        loss = float(self.learner.loss_of(LossSums(*all_reduce_sum(scored.sums))))
        found = scored.statistics
        masks = torch.tensor([found.masks, found.confidence, *found.class_shares], dtype=torch.float64)
        own = [part.to(self.learner.device) for part in (torch.from_numpy(scored.matrix.counts), masks)]
        counts, (count, confidence, *shares) = (part.cpu().numpy() for part in all_reduce_sum(own))
        reference = self.run.reference
        if reference is not None:
            reference = replace(
                reference, masks=int(count), confidence=float(confidence), class_shares=np.array(shares)
            )
        return loss, ConfusionMatrix(counts), reference

    def _restore(self, name: str) -> None:
        state = self.checkpoints.load(name, self.learner.device)
        self.learner.load_state_dict(state["learner"])
        self.entries, self.losses = state["entries"], list(state["losses"].to(self.learner.device))
        if rank() == 0:
            done = f"after step {self.learner.step}, {len(self.entries)} epochs finished"
            print(f"going on {done}, {world_size()} worker{'s' * (world_size() > 1)}", flush=True)

    def _save(self) -> None:
        self._check_finite()
        if not self.learner.is_finite():
            raise RequestError(_not_finite("gradient", len(self.entries), self.learner.step))
        self.learner.average_buffers()
        if rank() == 0:
            losses = torch.stack(self.losses).cpu() if self.losses else torch.zeros(0)
            state = {"learner": self.learner.state_dict(), "entries": self.entries, "losses": losses}
            self.checkpoints.save(self.learner.step, state)

    def _check_finite(self) -> None:
        finite = torch.isfinite(torch.stack(self.losses)) if self.losses else torch.ones(1, dtype=torch.bool)
        if not finite.all():
            step = self.learner.step - len(self.losses) + int((~finite).nonzero()[0]) + 1
            raise RequestError(_not_finite("loss", len(self.entries), step))

    def _entry(self, val_loss: float, matrix: ConfusionMatrix) -> Entry:
        run, step = self.run, self.learner.step
        entry: Entry = nan_to_none(
            {
                "epoch": len(self.entries) + 1,
                "step": step,
                "train_loss": float(torch.stack(self.losses).mean()),
                "val_loss": val_loss,
                "val_pixel_accuracy": matrix.pixel_accuracy,
                "val_miou": matrix.mean_iou,
                "val_mdice": matrix.mean_dice,
                "val_iou": dict(zip(run.labels.names, matrix.iou.tolist(), strict=True)),
                "val_dice": dict(zip(run.labels.names, matrix.dice.tolist(), strict=True)),
                "learning_rate": learning_rate(step - 1, run.settings.fit, run.total_steps),
            }
        )
        return entry

    def _model(self) -> Model:
        """Return the model as it is now, without its scores."""
        run = self.run
        return Model(
            network=self.learner.average,
            labels=run.labels,
            geometry=run.settings.geometry,
            training=to_mapping(run.settings)
            | {"images": len(run.labelled.train), "steps_done": self.learner.step, "precision": self.learner.precision},
            channels=run.channels,
        )


def _scores(entry: Entry, matrix: ConfusionMatrix) -> dict[str, Any]:
    scores = {name: value for name, value in entry.items() if name == "epoch" or name.startswith("val_")}
    return scores | {"confusion": matrix.counts.tolist()}


def _learner(run: TrainingRun, device: torch.device, *, begun: bool) -> Learner:
    network = new_network(run) if begun else first_network(run)
    weights = None if run.class_weights is None else torch.tensor(run.class_weights)
    return Learner(network, run.settings.fit, total_steps=run.total_steps, class_weights=weights, device=device)


def _not_finite(quantity: str, epoch: int, step: int) -> str:
    return (
        f"the {quantity} is not finite at epoch {epoch + 1}, step {step}; lower --lr or --clip, or check the labels. "
        "The model folder keeps the best model so far"
    )


def _is_best(entry: Entry, earlier: list[Entry]) -> bool:
    scores = [before["val_miou"] or 0.0 for before in earlier]
    return not scores or (entry["val_miou"] or 0.0) > max(scores)


def _out_of_patience(entries: list[Entry], patience: int) -> bool:
    scores = [entry["val_miou"] or 0.0 for entry in entries]
    return bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience
