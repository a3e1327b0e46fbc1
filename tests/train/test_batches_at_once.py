"""On a machine of many processors as many processes make batches as it has: tried on a Ray that believes in sixteen."""

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import ray

from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.data.settings import AugmentSettings, DataSettings
from unet.settings import Geometry
from unet.train.batches import CHUNK_IMAGES, BatchStream
from unet.train.examples import BatchRequest, BatchSpec
from unet.train.schedule import Sample

PROCESSES, CHUNKS = 16, 600


class SlowSample(Sample):
    """Takes a fifth of a second to be seen, and writes down when that began and ended."""

    times: str

    def __getnewargs__(self) -> tuple[int, int]:
        return self[0], self[1]  # without the wait

    def __iter__(self) -> Iterator[Any]:
        began = time.time()
        time.sleep(0.2)
        with Path(self.times).open("a") as file:
            file.write(f"{began} 1\n{time.time()} -1\n")
        return super().__iter__()


@pytest.mark.slow
def test_as_many_processes_as_there_may_be_make_batches_at_once(boxes: Path, tmp_path: Path) -> None:
    times = tmp_path / "times"
    subprocess.run([sys.executable, "-m", __name__, str(boxes), str(times)], check=True, timeout=120)
    steps = [int(line.split()[1]) for line in sorted(times.read_text().splitlines())]
    assert max(accumulate(steps)) > PROCESSES / 2


def stream(folder: Path, times: str) -> None:
    """Have CHUNKS chunks made, each with a slow sample."""
    pair = find_labelled_set(DataSettings(data=str(folder), classes="camvid")).train[0]
    slow, quick = SlowSample(0, 0), Sample(0, 0)
    slow.times = times
    requests = [BatchRequest((pair,) * CHUNK_IMAGES, (slow, *[quick] * (CHUNK_IMAGES - 1)))] * CHUNKS
    labels = read_labels(str(folder / "classes.csv"))
    spec = BatchSpec(labels, Geometry("resize", (24, 32)), AugmentSettings(), seed=5)
    ray.init(num_cpus=PROCESSES, include_dashboard=False, log_to_driver=False)
    assert sum(1 for _ in BatchStream(spec, processes=PROCESSES).batches(requests)) == CHUNKS


if __name__ == "__main__":
    from tests.train.test_batches_at_once import stream as importable

    importable(Path(sys.argv[1]), sys.argv[2])
