"""The training job: checks the request, starts the workers, and draws the report when they are done.

A run lives in OUTPUT/NAME. Everything is decided here once, in a `Run`, before any worker starts; `fitting` obeys it.
"""

import csv
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import yaml
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from unet import storage
from unet.artifact import Model
from unet.fitting import Run, fit, fitting_tensors
from unet.journal import Entry, read_entries
from unet.labelled_set import Census, check, describe, find_labelled_set, read_pair
from unet.labels import LabelSet, read_labels
from unet.metrics import ConfusionMatrix
from unet.model import UNet, architecture
from unet.predict import Predictor
from unet.report import Sample, training_report
from unet.sample import write_sample_set
from unet.session import connect
from unet.settings import RequestError, TrainSettings, to_mapping

SAMPLES = 6
"""Validation images that the report shows."""

FAILED = 1

SETTINGS = "settings.yaml"


def train(settings: TrainSettings) -> int:
    """The job: returns its exit code.

    Raises:
        RequestError: the request cannot be right; nothing has been started.
    """
    settings = _with_absolute_paths(settings)
    folder = storage.join(settings.output, settings.name)
    if _finished(folder, settings):
        print(f"{folder}: this run is finished; give another --name to train anew")
        return 0
    storage.check_writable(settings.output, "--output")
    run = _prepare(settings, folder)
    trainer = _trainer(run)
    storage.write(storage.join(folder, SETTINGS), yaml.safe_dump(to_mapping(settings), sort_keys=False).encode())
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        fault = _known_fault(error)
        if fault is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return FAILED
    _write_report(run)
    print(f"model:  {folder}/model\nreport: {folder}/report/index.html")
    return 0


def _with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """Workers run in another folder than the command."""

    def absolute(path: str | None) -> str | None:
        return path if path is None else os.path.abspath(path)

    data, fit_settings = settings.data, settings.fit
    return replace(
        settings,
        output=os.path.abspath(settings.output),
        data=replace(
            data,
            data=absolute(data.data),
            images=absolute(data.images),
            masks=absolute(data.masks),
            val_data=absolute(data.val_data),
        ),
        fit=replace(fit_settings, init_from=absolute(fit_settings.init_from)),
    )


def _prepare(settings: TrainSettings, folder: str) -> Run:
    labels = read_labels(settings.data.classes or "camvid")
    if settings.data.score_ignore:
        labels = labels.scoring_ignored()
    source = None
    if settings.data.data is None and settings.data.images is None:
        source = storage.join(settings.output, "sample-set")
        print(f"no --data: training on the generated sample set in {source}")
        write_sample_set(Path(source))
    labelled = find_labelled_set(settings.data, source)
    batch = settings.fit.batch_size
    if batch > len(labelled.train):
        raise RequestError(
            f"--batch-size {batch}: the set has {len(labelled.train)} training images; give at most that"
        )
    if settings.fit.init_from is not None:
        network = UNet(classes=len(labels.classes), **architecture(settings.model))
        given = Model.load(settings.fit.init_from, "--init-from")
        fitting = fitting_tensors(given, network, labels)
        if not any(tensor.ndim > 1 for name, tensor in fitting.items() if not name.startswith("head.")):
            raise RequestError(
                f"--init-from {settings.fit.init_from}: none of its weights fit; give the --model, --width, "
                "--norm and --upsample that it was trained with"
            )
    census = check(labelled, labels, settings.data.check_limit, print)
    print(describe(labelled, labels, census))
    return Run(
        settings=settings,
        folder=folder,
        labelled=labelled,
        labels=labels,
        class_weights=_class_weights(settings, labels, census[0]),
        terminal=sys.stderr.isatty(),
    )


def _class_weights(settings: TrainSettings, labels: LabelSet, census: Census) -> tuple[float, ...] | None:
    source = settings.fit.class_weights
    if source == "none":
        return None
    if source == "median":  # median frequency balancing (Eigen and Fergus, 2015)
        shares = census.shares
        median = np.median(shares[shares > 0]) if shares.any() else 1.0
        power = settings.fit.class_weight_power
        return tuple(float((median / share) ** power) if share else 1.0 for share in shares)
    try:
        with Path(source).open(newline="") as file:
            given = {row["name"]: float(row["weight"]) for row in csv.DictReader(file, skipinitialspace=True)}
        weights = tuple(given[name] for name in labels.names)
    except OSError:
        raise RequestError(f"--class-weights {source}: no such file; give none, median or a CSV") from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise RequestError(
            f"--class-weights {source}: needs the columns name,weight and a row for each class ({error})"
        ) from None
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise RequestError(f"--class-weights {source}: weights must be finite, none negative and not all zero")
    return weights


def _trainer(run: Run) -> ray.train.torch.TorchTrainer:
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every line of a worker is shown twice
    trainer = _LocalTrainer if connect(worker_output=True) else ray.train.torch.TorchTrainer
    resources = ray.cluster_resources()
    if run.settings.gpu and not resources.get("GPU"):
        raise RequestError("--gpu: the cluster has no GPU; leave the flag out to train on CPUs")
    cpus = max(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["Alive"])  # of the largest node
    data_cpus = max(cpus / 2, cpus - run.settings.workers) if run.settings.gpu else min(max(1.0, cpus / 8), cpus / 2)
    reserved = {"CPU": (cpus - data_cpus) / run.settings.workers} | ({"GPU": 1.0} if run.settings.gpu else {})
    return trainer(
        fit,
        train_loop_config={"run": replace(run, data_cpus=data_cpus, threads=max(1, int(cpus)))},
        scaling_config=ray.train.ScalingConfig(
            num_workers=run.settings.workers, use_gpu=run.settings.gpu, resources_per_worker=reserved
        ),
        run_config=ray.train.RunConfig(
            name=run.settings.name,
            storage_path=os.path.dirname(run.folder),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
        ),
    )


class _LocalTrainer(ray.train.torch.TorchTrainer):
    """Without the actor that outlives a driver to free its workers: local Ray ends with its driver, and without a
    dashboard that actor does nothing but complain."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def _finished(folder: str, settings: TrainSettings) -> bool:
    """Whether the run is done. Raises RequestError if there is one of that name with other settings."""
    uri = storage.join(folder, SETTINGS)
    if not storage.exists(uri) or not read_entries(folder):
        return False
    before, now = yaml.safe_load(storage.read(uri)), to_mapping(settings)
    changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        raise RequestError(f"--name {settings.name}: was run with other settings ({'; '.join(changed)}); take another")
    return storage.exists(storage.join(folder, "report/index.html"))


def _known_fault(error: ray.train.TrainingFailedError) -> str | None:
    """The message of a fault that ends a run for a reason we know."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, RequestError):
            return str(cause)
    return None


def _write_report(run: Run) -> None:
    folder, settings = storage.join(run.folder, "report"), run.settings
    model = Model.load(storage.join(run.folder, "model"), "--name")
    predictor = Predictor(model, precision=settings.fit.precision)
    chosen = run.labelled.val[:: max(1, len(run.labelled.val) // SAMPLES)][:SAMPLES]
    samples = []
    for pair in chosen:
        image, truth = read_pair(pair, run.labels)
        samples.append(Sample(name=pair.key, image=image, truth=truth, prediction=predictor.predict(image)))
    entries = read_entries(run.folder)
    files = training_report(
        title=settings.name,
        facts=_facts(run, model, entries),
        labels=run.labels,
        history=entries,
        confusion=ConfusionMatrix(np.array(model.scores["confusion"], np.int64)),
        samples=samples,
    )
    for name in sorted(files, key=lambda name: name == "index.html"):  # the page last: it marks a finished run
        storage.write(storage.join(folder, name), files[name])


def _facts(run: Run, model: Model, entries: list[Entry]) -> dict[str, str]:
    geometry = run.settings.geometry
    return {
        "Images": f"{len(run.labelled.train)} train, {len(run.labelled.val)} validation",
        "Input": f"{geometry.kind} {geometry.size[0]} x {geometry.size[1]}",
        "Parameters": f"{sum(p.numel() for p in model.network.parameters()):,}",
        "Steps": f"{entries[-1]['step']} of {run.settings.fit.batch_size} images",
        "Best epoch": f"{model.scores['epoch']} of {len(entries)}",
        "Training time": f"{sum(entry['seconds'] for entry in entries) / 60:.1f} minutes",
    }
