"""What training holds in memory does not grow with the labelled set."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.jobs.training import training_flags
from tests.processes import descendants
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
