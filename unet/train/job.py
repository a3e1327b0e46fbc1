"""The training job: checks the request, starts the workers, and draws the report when they are done.

A run lives in OUTPUT/NAME. Everything is decided here once, in a `TrainingRun`, before any worker starts. Checkpoints
are the run's own: Ray Train's storage is a scratch folder that nothing is read from.
"""

import csv
import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import yaml
from ray.train.v2.api.exceptions import TrainingFailedError

from unet.data.channels import describe
from unet.data.check import check
from unet.data.labelled_set import LabelledSet, find_labelled_set, read_checked_pair
from unet.data.labels import LabelSet, read_labels
from unet.data.statistics import SetStatistics
from unet.report.check import LabelledSample, check_report
from unet.runtime import telemetry
from unet.runtime.session import check_shared, connect, in_job_directory
from unet.runtime.stop import shutdown_hook
from unet.sample.write import write_sample_set
from unet.settings import ExitCode, RequestError, to_mapping
from unet.storage import store
from unet.storage.faults import StorageError
from unet.storage.objects import join_uri
from unet.train.beginning import first_network
from unet.train.faults import Superseded, WorkerFault, fault_of, naming_faults, reason_of
from unet.train.loop import train_worker
from unet.train.measure import plan_run
from unet.train.plan import is_open
from unet.train.reference import measure_reference
from unet.train.result import write_report
from unet.train.resume import (
    IDENTITY,
    PAGE,
    SETTINGS,
    Identity,
    asks_for_more,
    check_identity,
    has_begun,
    identity_of,
    is_finished,
    kept_channels,
    planned_of,
    read_identity,
    with_plan,
)
from unet.train.run import TrainingRun
from unet.train.settings import TrainSettings, check_batch
from unet.train.tracker import tracking
from unet.train.trainer import TorchConfig, Trainer, resources, worker_environment

SAMPLES = 6
"""Images of a part that the page of a check shows."""

RESTARTS = 10
"""How often workers are replaced before a run is given up; machines that were taken away with notice do not count."""

TRACEBACK, CHECK_PAGE = "traceback.txt", "check.html"


def train(settings: TrainSettings) -> int:
    """Run the job; return its exit code.

    Raises:
        RequestError: the request cannot be right; nothing has been started.
    """
    began = time.monotonic()
    settings = _with_absolute_paths(settings)
    folder = join_uri(settings.output, settings.name)
    store.check_writable(settings.output, "--output")
    if settings.check:
        return _check_alone(settings, folder)
    finished, begun = is_finished(folder), has_begun(folder)
    if finished or begun:
        settings = with_plan(settings, planned_of(folder))
    more = (finished or begun) and asks_for_more(folder, settings)
    if finished and not more:
        print(f"{folder}: this run is finished; give more --epochs to go on, or another --name to train anew")
        return 0
    if finished and not begun:
        raise RequestError(f"--name {settings.name}: has no checkpoint left to go on from; take another")
    try:
        run = _decide(settings, folder, read_identity(folder) if begun else None, began)
        with (
            tempfile.TemporaryDirectory(prefix="unet-train-") as scratch,
            shutdown_hook(partial(shutil.rmtree, scratch, ignore_errors=True)),
        ):
            trainer = _trainer(run, scratch)
            if not begun and has_begun(folder):
                raise RequestError(
                    f"--name {settings.name}: another command has begun to train in {folder}; take another"
                )
            if finished:
                store.write(join_uri(folder, PAGE), b"")  # deleting is a right that no job needs
            store.write(join_uri(folder, IDENTITY), json.dumps(identity_of(run)).encode())
            store.write(join_uri(folder, SETTINGS), yaml.safe_dump(to_mapping(run.settings), sort_keys=False).encode())
            with tracking(run.settings, folder), telemetry.running_gauge(telemetry.TRAINING, run=settings.name):
                trainer.fit()
                write_report(run)
    except (TrainingFailedError, WorkerFault) as error:
        return _tell_fault(error, folder)
    print(f"model:  {folder}/model\nreport: {folder}/{PAGE}")
    return 0


def _decide(settings: TrainSettings, folder: str, before: Identity | None, began: float) -> TrainingRun:
    """Return the run, of which nothing is left open, connected to Ray; `before`: what it was begun on, if it was."""
    run, counted = _prepare(settings, folder, before)
    if before is not None:
        check_identity(run, before)
    run = _placed(run, local=connect(worker_output=True))
    if in_job_directory(settings.output):
        print(f"warning: --output {settings.output} is in a folder that Ray removes after the job; give s3://...")
    _check_shared(run, begun=before is not None)
    if before is None and is_open(settings):
        run = plan_run(run, counted, lambda: began + 60 * (settings.fit.minutes or 0) - time.monotonic())
        check_batch(run.settings, len(run.labelled.train))
    return run


def _with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    return replace(
        store.with_absolute_paths(settings, "output"),
        data=store.with_absolute_paths(settings.data, "data", "images", "masks", "val_data"),
        fit=store.with_absolute_paths(settings.fit, "init_from", "encoder_weights"),
    )


def _tell_fault(error: TrainingFailedError | WorkerFault, folder: str) -> ExitCode:
    """Print why a run ended, in one line, and return its exit code; what is behind it goes to a file of the run."""
    fault = (
        error
        if isinstance(error, WorkerFault)
        else fault_of(error) or WorkerFault(f"given up: {reason_of(error)}; the same command goes on", str(error))
    )
    line = f"error: {fault}"
    if isinstance(fault, WorkerFault):
        file = join_uri(folder, TRACEBACK)
        try:
            store.write(file, fault.traceback.encode())
            line += f"; traceback in {file}"
        except StorageError:
            print(fault.traceback, file=sys.stderr)
    print(line, file=sys.stderr)
    return ExitCode.BAD_REQUEST if isinstance(fault, Superseded) else ExitCode.UNEXPECTED


def _check_shared(run: TrainingRun, *, begun: bool) -> None:
    """Raise RequestError if a machine of the cluster does not see what the run reads and writes."""
    first, last = run.labelled.train[0], run.labelled.val[-1]
    paths = {"--data": first.image, "--masks": first.mask, "--val-data": last.image}
    if run.settings.fit.encoder_weights is not None and not begun:
        paths["--encoder-weights"] = run.settings.fit.encoder_weights
    check_shared(paths, {"--output": run.folder})


def _prepare(settings: TrainSettings, folder: str, before: Identity | None) -> tuple[TrainingRun, SetStatistics]:
    """Return the run, all of which has been checked, and what was counted in its training images; `before`: what it was
    begun on, if it was."""
    found, labels = _find_set(settings)
    check_batch(settings, len(found.train))
    cache = join_uri(folder, "check.json")
    checked = check(found, labels, settings.data, print, kept_channels(before), cache)
    print(checked.table)
    statistics = checked.statistics
    run = TrainingRun(
        settings=settings,
        folder=folder,
        labelled=checked.labelled,
        labels=labels,
        class_weights=_class_weights(settings, labels, statistics[0]),
        largest=max(statistics[1].sizes, key=math.prod, default=(0, 0)),
        channels=checked.channels,
        reference=measure_reference(
            checked.labelled.train, checked.channels, len(labels.classes), settings.data.check_limit
        ),
        left_out=tuple(image for part in statistics for image in part.damaged),
        terminal=sys.stderr.isatty(),
        planned={} if before is None else planned_of(folder),
    )
    if before is None:
        first_network(run, verbose=True)  # as workers will: here it is seen that they can
    return run, statistics[0]


def _find_set(settings: TrainSettings) -> tuple[LabelledSet, LabelSet]:
    """Return the set that is named, or the generated one, and what its masks mean."""
    labels = read_labels(settings.data.labels)
    if settings.data.score_ignore:
        labels = labels.with_ignored_as_classes()
    source = None
    if settings.data.folder is None:
        source = join_uri(settings.output, "sample-set")
        print(f"no --data: training on the generated sample set in {source}", flush=True)
        write_sample_set(source)
    return find_labelled_set(settings.data, source), labels


def _check_alone(settings: TrainSettings, folder: str) -> int:
    """Check the set, and write a page about it; return the exit code."""
    found, labels = _find_set(settings)
    checked = check(found, labels, settings.data, print)
    print(checked.table)
    parts = checked.labelled.train, checked.labelled.val
    chosen = [pair for part in parts for pair in part[:: max(1, len(part) // SAMPLES)][:SAMPLES]]
    read = ((pair.key, *read_checked_pair(pair, labels, checked.channels)) for pair in chosen)
    samples = (LabelledSample(name=name, image=image.to_array(), mask=mask) for name, image, mask in read)
    facts = {
        "Labelled set": settings.data.folder or "the generated sample set",
        "Label set": settings.data.labels,
        "Channels": describe(checked.channels),
    }
    count = sum(part.sizes.total() + len(part.damaged) for part in checked.statistics)
    if count < (pairs := len(found.train + found.val)):
        facts["Read"] = f"{count:,} of {pairs:,} pairs, a random sample"
    page = check_report(title=settings.name, facts=facts, labels=labels, statistics=checked.statistics, samples=samples)
    store.write(join_uri(folder, CHECK_PAGE), page)
    print(f"page: {join_uri(folder, CHECK_PAGE)}")
    return 0


def _class_weights(settings: TrainSettings, labels: LabelSet, statistics: SetStatistics) -> tuple[float, ...] | None:
    source = settings.fit.class_weights
    if source == "none":
        return None
    if source == "median":  # median frequency balancing (Eigen and Fergus, 2015)
        shares = statistics.shares
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


def _placed(run: TrainingRun, *, local: bool) -> TrainingRun:
    """Return `run` with what its workers have of the cluster, or of this machine (`local`)."""
    least, most = run.settings.worker_range
    reserved, data_cpus = resources(most, least=least, gpu=run.settings.gpu, local=local)
    return replace(run, reserved=reserved, data_cpus=data_cpus)


def _trainer(run: TrainingRun, scratch: str) -> Trainer:
    least, most = run.settings.worker_range
    workers: Any = most if least == most else (least, most)
    return Trainer(
        naming_faults(train_worker),
        train_loop_config={"run": run},
        torch_config=TorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=run.settings.gpu,
            resources_per_worker=run.reserved,
            placement_strategy="PACK" if run.settings.gpu else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name=run.settings.name,
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]
            worker_runtime_env=worker_environment(),
        ),
    )
