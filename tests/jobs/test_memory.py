"""What training holds in memory does not grow with the labelled set, and what a worker of segmentation does not with
its images."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, make_pair, write_pair
from tests.jobs.bench import NATIVE, Bench, image_bytes, save_model
from tests.jobs.job_process import JobProcess
from tests.jobs.training import training_flags
from tests.processes import command_line, descendants
from unet.settings import Geometry
from unet.train.journal import read_entries

STORE = 80 << 20
"""Bytes of the object store: about the least that Ray allows."""

PAIRS, SIZE, EPOCHS = 920, (480, 640), 4

JOB = f"""
import sys
import ray
from unet.command_line import run
from unet.train.settings import TrainSettings
from unet.train.job import train
ray.init(num_cpus=2, object_store_memory={STORE}, include_dashboard=False)
sys.exit(run(train, TrainSettings))
"""


def write_set(folder: Path) -> None:
    """Images that no compression makes smaller, ten times the object store in all."""
    assert PAIRS * 3 * SIZE[0] * SIZE[1] > 10 * STORE
    rng = np.random.default_rng(0)
    for part, count in (("train", PAIRS), ("val", 4)):
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros(SIZE, np.uint8)
            mask[100:300, 200:400] = 1
            image = rng.integers(0, 100, (*SIZE, 3), np.uint8)
            image[mask == 1] += 120
            Image.fromarray(image).save(folder / part / "images" / f"{number:04}.bmp")
            Image.fromarray(mask).save(folder / part / "masks" / f"{number:04}.png")
    (folder / "classes.csv").write_text("index,name,red,green,blue\n0,ground,0,0,0\n1,box,255,0,0\n")


def resident(processes: list[int]) -> int:
    """Bytes of all processes, what they share counted once (proportional set size)."""
    total = 0
    for process in processes:
        with suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


@pytest.mark.slow
def test_a_set_ten_times_the_object_store_trains_at_a_flat_resident_size(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    flags = training_flags(
        str(tmp_path / "set"),
        str(tmp_path / "runs"),
        classes=tmp_path / "set/classes.csv",
        epochs=EPOCHS,
        steps_per_epoch=PAIRS // 8,
        batch_size=8,
        checkpoint_every=0,
    )
    command = [sys.executable, "-c", JOB, *flags]
    peaks = [0] * (EPOCHS + 1)
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as job:
        while job.poll() is None:
            epoch = len(read_entries(str(tmp_path / "runs/run")))
            peaks[epoch] = max(peaks[epoch], resident([job.pid, *descendants(job.pid)]))
            time.sleep(0.5)
    assert job.returncode == 0, (tmp_path / "log").read_text()
    print("peaks by epoch:", ", ".join(f"{peak / 1e6:.0f} MB" for peak in peaks))
    assert max(peaks[2:EPOCHS]) < 1.1 * max(peaks[:2])


MAX_WORKER = 3e9
"""Bytes of a worker of segmentation, at most."""


def write_blank(folder: Path) -> None:
    """148 images of 19 million pixels each, in 60 kB."""
    buffer = io.BytesIO()
    Image.new("RGB", (4400, 4400)).save(buffer, "PNG")
    for number in range(148):
        (folder / f"large-{number:03}.png").write_bytes(buffer.getvalue())


def write_heavy(folder: Path) -> None:
    """16 files of 192 MB."""
    first = folder / "large-00.ppm"
    Image.new("RGB", (8000, 8000)).save(first)
    for number in range(1, 16):
        os.link(first, folder / f"large-{number:02}.ppm")


def write_wide(folder: Path) -> None:
    """A photograph of 108 million pixels."""
    Image.new("RGB", (12_000, 9_000), (90, 120, 60)).save(folder / "large.jpg")


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_blank, write_heavy, write_wide])
def test_promise_36_a_worker_takes_at_most_3_gb(tmp_path: Path, write: Callable[[Path], None]) -> None:
    bench = Bench(str(tmp_path))
    # Tiles of an image take the same memory, whatever it is; of many images they take hours.
    wide = write is write_wide
    save_model(bench.model, seed=2, geometry=NATIVE if wide else Geometry("resize", (64, 64)))
    Path(bench.images).mkdir()
    for number in range(1000):
        Path(bench.images, f"{number:04}.png").write_bytes(image_bytes(number))
    write(Path(bench.images))
    flags = ["--input", bench.images, "--output", bench.masks, "--model", bench.model, "--workers", "1"]
    flags += ["--objects", "box,ground"] if wide else []
    job = JobProcess("segment.py", flags, tmp_path / "log", RAY_ADDRESS="local")
    peak = peak_of(job, b"SegmentWorker")
    assert job.end() == 0, (tmp_path / "log").read_text()  # no object has failed
    print(f"{write.__name__}: {peak / 1e9:.2f} GB")
    assert any(Path(bench.masks).glob("_segment/objects/*")) == wide
    assert 0 < peak <= MAX_WORKER


def peak_of(job: JobProcess, name: bytes) -> int:
    """Most bytes that a process whose name has `name` ever had, until the job ends."""
    peak = 0
    while job.process.poll() is None:
        for process in descendants(job.process.pid):
            with suppress(OSError):
                if name in command_line(process):
                    lines = Path(f"/proc/{process}/status").read_text().splitlines()
                    peak = max(peak, next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")))
        time.sleep(0.05)
    return peak


@pytest.mark.slow
def test_promise_36_a_validation_image_of_64_megapixels_takes_a_worker_less_than_4_gb(
    boxes: Path, tmp_path: Path
) -> None:
    image, mask = (np.tile(array, (200, 143, 1)[: array.ndim])[:8000, :8000] for array in make_pair(200))
    write_pair(boxes / "val", "200", image, mask)
    flags = training_flags(
        str(boxes), str(tmp_path / "runs"), classes=boxes / "classes.csv", epochs=1, steps_per_epoch=2
    )
    place = flags.index("--size")
    flags = [*flags[:place], "--crop", "32", "32", *flags[place + 3 :]]
    job = JobProcess("train.py", flags, tmp_path / "log", RAY_ADDRESS="local")
    peak = peak_of(job, b"RayTrainWorker")
    assert job.end() == 0, (tmp_path / "log").read_text()
    print(f"{peak / 1e9:.2f} GB")
    assert 0 < peak < 4e9
