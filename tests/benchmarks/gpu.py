"""What a GPU makes of this: `python -m tests.benchmarks.gpu`, in less than ten minutes.

First the tests marked `gpu`. Then, in the precision that is automatic on this device, images per second of training
(steps on a batch that is there already) and of applying a model (arrays to masks), each with its share of the peak,
which is that of a matrix product measured here. Last, what the data path could feed. Without CUDA all is small, for a
test of the program itself.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.training import feed, flops
from unet.data.labels import read_labels
from unet.model.artifact import Model
from unet.model.network import UNet
from unet.model.precision import DTYPES, fast_precision
from unet.model.predictor import GPU_BATCH_SIZE, Predictor
from unet.model.settings import ModelSettings, Preset, architecture
from unet.runtime.session import connect
from unet.sample.write import write_sample_set
from unet.segment.segmenter import GPU_THREADS
from unet.settings import Geometry
from unet.train.learner import Learner
from unet.train.settings import FitSettings

CLASSES = 11
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LARGE = DEVICE.type == "cuda"

MODELS: tuple[Preset, ...] = ("classic", "default") if LARGE else ("default",)
TRAINED = [((128, 128), 256), ((512, 512), 32)] if LARGE else [((32, 32), 4)]
"""Sizes of images, and how many a step takes."""
SEGMENTED = [((384, 480), 128), ((1024, 1024), 64)] if LARGE else [((32, 48), 2)]
"""Sizes of images, and how many are predicted."""
SECONDS = 8.0 if LARGE else 0.0
"""Of each measurement, at least."""


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that `work` takes, on the average of as many turns as `SECONDS` are enough for, after three untimed."""
    for _ in range(3 if LARGE else 0):
        work()
    _wait()
    started, turns = time.perf_counter(), 0
    while turns == 0 or time.perf_counter() - started < SECONDS:
        for _ in range(5 if LARGE else 1):  # the host runs ahead
            work()
            turns += 1
        _wait()
    return (time.perf_counter() - started) / turns


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product."""
    length = 8192 if LARGE else 256
    a, b = (torch.randn(length, length, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2.0 * length**3 / seconds_of(lambda: a @ b)


def training_rate(preset: Preset, size: tuple[int, int], batch: int) -> tuple[float, int]:
    """Images per second of training with default settings, and into how many parts a batch is cut to fit."""
    images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, device=DEVICE)
    masks = torch.randint(0, CLASSES, (batch, *size), dtype=torch.uint8, device=DEVICE)
    for accumulate in (1, 2, 4, 8):
        settings = FitSettings(batch_size=batch, accumulate=min(accumulate, batch))
        try:
            learner = Learner(_network(preset), settings, total_steps=1 << 20, device=DEVICE)
            return batch / seconds_of(lambda learner=learner: learner.train_step(images, masks)), accumulate  # type: ignore[misc]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return 0.0, 0


def segmenting_rate(preset: Preset, size: tuple[int, int], count: int) -> float:
    """Images per second from arrays to masks, in as many threads as a worker of the segmentation job has."""
    model = Model(_network(preset).eval(), read_labels("camvid"), Geometry("native", size))
    predictor = Predictor(model, device=DEVICE, tile=2048)
    images = [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed in range(count)]
    batches = [images[first : first + GPU_BATCH_SIZE] for first in range(0, count, GPU_BATCH_SIZE)]
    with ThreadPoolExecutor(GPU_THREADS if LARGE else 1) as pool:
        return count / seconds_of(lambda: list(pool.map(predictor.predict_many, batches)))


def _network(preset: Preset) -> UNet:
    return UNet(classes=CLASSES, **architecture(ModelSettings(model=preset)))


def _wait() -> None:
    if LARGE:
        torch.cuda.synchronize()


def measure() -> None:
    """Print the rates and their shares of the peak."""
    precision = fast_precision(DEVICE.type)
    name = torch.cuda.get_device_name() if LARGE else "CPU"
    best = peak(DTYPES[precision])
    print(f"{name}, torch {torch.__version__}, {precision}: matrix products at {best / 1e12:.3g} TFLOP/s", flush=True)
    for preset in MODELS:
        for size, batch in TRAINED:
            rate, parts = training_rate(preset, size, batch)
            share = rate * flops(preset, size) / best
            what = f"train {preset} {size[0]}x{size[1]}, batches of {batch} in {parts}"
            print(f"{what}: {rate:.1f} images/s, MFU {share:.2f}", flush=True)
    for preset in MODELS:
        for size, count in SEGMENTED:
            rate = segmenting_rate(preset, size, count)
            share = rate * flops(preset, size) / 3 / best
            print(f"segment {preset} {size[0]}x{size[1]}: {rate:.1f} images/s, {share:.2f} of the peak", flush=True)


def main() -> int:
    """Run the tests, then print the figures; return 1 if a test fails."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    failed = 0
    if LARGE:
        tests = map(str, sorted(Path("tests").glob("*/test_gpu.py")))
        failed = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], check=False).returncode
    measure()
    if LARGE:
        with tempfile.TemporaryDirectory() as folder:
            write_sample_set(folder)
            connect(worker_output=False)
            for size, _ in TRAINED:
                feed(folder, Geometry("resize", size), 250)
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
