"""What a plan is made from: how fast a worker trains, what memory it has, and what masks keep when they are resized."""

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import ray
import torch
from ray.exceptions import RayError

from unet.data.image import Array, ImageError, preprocess_image, resize_mask
from unet.data.labelled_set import read_checked_pair
from unet.data.labels import IGNORE
from unet.data.statistics import SetStatistics
from unet.model.artifact import Model
from unet.model.metrics import ConfusionMatrix
from unet.model.predictor import Predictor
from unet.runtime.memory import retain_freed_memory
from unet.settings import Geometry, RequestError, to_mapping
from unet.storage.faults import StorageError
from unet.train.beginning import new_network
from unet.train.examples import make_batch
from unet.train.faults import worker_fault
from unet.train.learner import Learner
from unet.train.plan import Kept, Machine, SetFacts, Size, Speed, make_plan, planned_values
from unet.train.run import TrainingRun
from unet.train.settings import TrainSettings
from unet.train.trainer import worker_environment
from unet.train.validation import validate

MEASURED_SECONDS, MEASURED_STEPS = 3.0, 3
"""For which steps are taken at least, and how many; a step before them, which prepares, does not count."""

VALIDATED = 4
"""Batches of validation images that are timed, at most."""

EPOCH_SECONDS = 1.0
"""Of checkpoints, model folder and journal at the end of an epoch."""

RESIZED, RESIZED_PIXELS, LOOKED_AT = 16, 1 << 26, 1024
"""Pairs that are resized and back, at most; larger images are not resized: they are scenes, and not views of one; and
pixels a side of the middle of an image, of which the variance is looked at."""

MEMORY_SHARE = 0.6
"""Part of the free memory that is planned with."""


def plan_run(run: TrainingRun, counted: SetStatistics, seconds_left: Callable[[], float]) -> TrainingRun:
    """Return `run` with nothing left open, and say how it is planned.

    Raises:
        RequestError: there is no time for a run, or a file that cannot be used.
    """

    def measure(settings: TrainSettings) -> Speed:
        return Speed(*ask_worker(run, measure_speed, replace(run, settings=settings), cores))

    gpu = run.settings.gpu
    cores = run.data_cpus if gpu else max(1, int(run.reserved["CPU"]))
    memory = ask_worker(run, gpu_memory) if gpu else _memory_of_share(run.reserved["CPU"])
    facts = SetFacts(
        sizes=counted.sizes,
        images=len(run.labelled.train),
        classes=len(run.labels.classes),
        kept_at=functools.cache(functools.partial(kept_at, run)),
    )
    machine = Machine(memory=MEMORY_SHARE * memory, cores=cores, gpu=gpu)
    plan = make_plan(run.settings, facts, machine, measure, seconds_left)
    print("\n".join(plan.lines), flush=True)
    added = planned_values(to_mapping(run.settings), to_mapping(plan.settings))
    return replace(run, settings=plan.settings, planned=added)


def measure_speed(run: TrainingRun, cores: int) -> Speed:
    """Return how fast a worker with so many cores trains, and validates, as `run` says."""
    retain_freed_memory()
    gpu, workers = run.settings.gpu, run.settings.worker_range[1]
    if not gpu:
        torch.set_num_threads(cores)
    request = run.training_request(0, 0, workers)
    make_batch(request, run.batch_spec)  # decodes what is then at hand, as after a first pass
    making, batch = _timed(lambda: make_batch(request, run.batch_spec))
    images, masks = torch.from_numpy(batch.images), torch.from_numpy(batch.masks)
    learner = Learner(
        new_network(run), run.settings.fit, total_steps=1000, device=torch.device("cuda" if gpu else "cpu")
    )
    float(learner.train_step(images, masks))
    started, steps = time.monotonic(), 0
    while steps < MEASURED_STEPS or time.monotonic() - started < MEASURED_SECONDS:
        float(learner.train_step(images, masks))
        steps += 1
    step = (time.monotonic() - started) / steps
    # On CPUs batches are made beside training, on the same cores.
    return Speed(max(step, making / cores) if gpu else step + making / cores, _validation(run, learner, workers, cores))


def _validation(run: TrainingRun, learner: Learner, workers: int, cores: int) -> float:
    """Return the seconds of a validation, from a few of its batches."""
    requests = run.validation_requests(0, workers)
    few = requests[:: -(-len(requests) // VALIDATED)]
    model = Model(learner.average, run.labels, run.settings.geometry, channels=run.channels)
    predictor = Predictor(model, device=learner.device, precision=learner.precision)
    making, batches = _timed(lambda: [make_batch(request, run.batch_spec) for request in few])
    validate(predictor, learner.sums_of, batches[:1])
    applying, _ = _timed(lambda: validate(predictor, learner.sums_of, batches))
    each = max(applying, making / cores) if run.settings.gpu else applying + making / cores
    return each * len(requests) / len(few) + EPOCH_SECONDS


def kept_at(run: TrainingRun, size: Size) -> Kept:
    """Return what the training part keeps when it is resized and back; nothing where images are larger than
    `RESIZED_PIXELS`. Of images the middle is looked at, up to `LOOKED_AT` pixels a side."""
    pairs = run.labelled.train
    matrix, shares = ConfusionMatrix.empty(len(run.labels.classes)), list[float]()
    for pair in pairs[:: -(-len(pairs) // RESIZED)]:
        image, mask = read_checked_pair(pair, run.labels, run.channels)
        if mask.size > RESIZED_PIXELS:
            return Kept(0, 0)
        resized = resize_mask(resize_mask(mask, size), (mask.shape[0], mask.shape[1]))
        matrix.add(np.where(resized == IGNORE, IGNORE, mask), resized)
        shares.append(_variance_kept(image.to_array(), size))
    return Kept(matrix.mean_iou, float(np.mean(shares)))


def _variance_kept(image: Array, size: Size) -> float:
    """Return the share of an image's variance that is left where it is resized to `size` and back."""
    height, width = image.shape[:2]
    top, left = (max(0, length - LOOKED_AT) // 2 for length in (height, width))
    middle = image[top : top + LOOKED_AT, left : left + LOOKED_AT]
    whole = middle.shape[0], middle.shape[1]
    small = max(1, whole[0] * size[0] // height), max(1, whole[1] * size[1] // width)
    back = preprocess_image(preprocess_image(middle, Geometry("resize", small)), Geometry("resize", whole))
    lost = np.square(back.astype(np.float32) - middle).mean()
    return float(1 - lost / max(1e-6, middle.var(axis=(0, 1)).mean()))


def gpu_memory() -> float:
    """Return the free bytes of this process's GPU."""
    return float(torch.cuda.mem_get_info()[0])


def _memory_of_share(cpus: float) -> float:
    """Return the bytes that a worker with so many CPUs may have, on the machine that has the least of them."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [host["memory"] * cpus / host["CPU"] for host in machines if host.get("CPU") and host.get("memory")]
    return min(shares, default=psutil.virtual_memory().available)


def ask_worker(run: TrainingRun, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `function` returns in a process that has what a worker has, and ends, for it retains memory.

    Raises:
        RequestError, StorageError, WorkerFault: what ended it.
    """
    cpus, gpus = run.reserved["CPU"], run.reserved.get("GPU", 0)
    worker = ray.remote(max_calls=1, max_retries=0, num_cpus=cpus, num_gpus=gpus, runtime_env=worker_environment())
    try:
        return ray.get(worker(function).remote(*arguments))
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, RequestError | ImageError):
            raise RequestError(str(cause)) from None
        raise cause if isinstance(cause, StorageError) else worker_fault(error) from None


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.monotonic()
    value = call()
    return time.monotonic() - started, value
