"""Ray Data hands over exactly the batches that were asked for, in order."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from tests.processes import command_line, descendants
from unet.data.image import encode_image
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.data.settings import AugmentSettings, DataSettings
from unet.settings import Geometry, RequestError
from unet.train.batches import CHUNK_BYTES, BatchStream, cut_chunks
from unet.train.examples import BatchRequest, BatchSpec, make_batch
from unet.train.schedule import Sample, samples_of_step

pytestmark = pytest.mark.usefixtures("one_ray")


@pytest.fixture
def spec(boxes: Path) -> BatchSpec:
    return BatchSpec(read_labels(str(boxes / "classes.csv")), Geometry("resize", (24, 32)), AugmentSettings(), seed=5)


@pytest.fixture
def requests(boxes: Path) -> list[BatchRequest]:
    """Six training batches of four, a validation of batches of two and one, and one more training batch."""
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))

    def training(step: int) -> BatchRequest:
        samples = samples_of_step(step, seed=5, rows=len(labelled.train), batch=4)
        return BatchRequest(tuple(labelled.train[sample.row] for sample in samples), tuple(samples))

    validation = [BatchRequest(labelled.val[start : start + 2]) for start in range(0, 5, 2)]
    return [*map(training, range(6)), *validation, training(6)]


def test_batches_arrive_whole_and_in_order(requests: list[BatchRequest], spec: BatchSpec) -> None:
    arrived = list(BatchStream(spec, processes=2).batches(requests))
    assert [len(batch.images) for batch in arrived] == [4, 4, 4, 4, 4, 4, 2, 2, 1, 4]
    for item, batch in zip(requests, arrived, strict=True):
        expected = make_batch(item, spec)
        assert np.array_equal(batch.images, expected.images)
        assert np.array_equal(batch.masks, expected.masks)


def test_a_large_batch_is_made_in_parts_and_small_ones_together(requests: list[BatchRequest], spec: BatchSpec) -> None:
    large = replace(spec, geometry=Geometry("resize", (1024, 1024)))
    chunks = list(cut_chunks(requests, large))
    assert all(sum(map(large.bytes_of, chunk)) <= CHUNK_BYTES for chunk in chunks)
    assert [len(part.pairs) for part in chunks[0]] == [2]
    parts = [part for chunk in chunks for part in chunk]
    assert [pair for part in parts for pair in part.pairs] == [pair for whole in requests for pair in whole.pairs]
    assert [len(chunk) for chunk in cut_chunks(requests, spec)] == [9, 1]  # of 32 images at most


def test_parts_of_a_batch_arrive_as_one(requests: list[BatchRequest], spec: BatchSpec) -> None:
    large = replace(spec, geometry=Geometry("resize", (1448, 1448)))
    (batch,) = BatchStream(large, processes=2).batches(requests[:1])
    expected = make_batch(requests[0], large)
    assert np.array_equal(batch.images, expected.images)
    assert np.array_equal(batch.masks, expected.masks)


@pytest.mark.slow
def test_the_stream_lets_no_process_grow(requests: list[BatchRequest], spec: BatchSpec) -> None:
    """Over 7,500 batches, each process by less than 12 MB of its own memory from the first fifth on."""
    many = requests[:6] * 1250
    began: dict[int, int] = {}
    for place, _ in enumerate(BatchStream(spec, processes=2).batches(many)):
        if place == len(many) // 5:
            began = {process: own_bytes(process) for process in (os.getpid(), *descendants(os.getpid()))}
    grown = {process: own_bytes(process) - before for process, before in began.items()}
    names = {command_line(process)[-40:]: grown[process] >> 20 for process in grown}
    assert max(grown.values()) < 12 << 20, names


def own_bytes(process: int) -> int:
    """Resident bytes that a process shares with no file and no other process; 0 if it has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)
    return 0


class SignedSample(Sample):
    """Writes down which process sees it."""

    processes: str

    def __getnewargs__(self) -> tuple[int, int]:
        return self[0], self[1]

    def __iter__(self) -> Iterator[Any]:
        with Path(self.processes).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().__iter__()


class Training:
    """Holds CPUs."""

    def begin(self) -> None: ...


def test_the_process_that_makes_batches_outlives_pauses_of_training(
    requests: list[BatchRequest], spec: BatchSpec, tmp_path: Path
) -> None:
    sample = SignedSample(0, 0)
    sample.processes = str(tmp_path / "processes")
    request = BatchRequest(requests[0].pairs[:1] * 32, (sample,) * 32)  # a chunk by itself
    training: Any = ray.remote(num_cpus=2)(Training).remote()  # all: Ray then ends what is idle for a second
    ray.get(training.begin.remote())
    try:
        few_ahead = BatchStream(spec, processes=1, workers=1 << 20)
        for _ in few_ahead.batches([request] * 3):
            time.sleep(4)
    finally:
        ray.kill(training)
    assert len(set(Path(sample.processes).read_text().split())) == 1


def test_few_batches_are_made_until_the_first_are_used(
    requests: list[BatchRequest], spec: BatchSpec, tmp_path: Path
) -> None:
    sample = SignedSample(0, 0)
    sample.processes = str(tmp_path / "processes")
    request = BatchRequest(requests[0].pairs[:1] * 32, (sample,) * 32)  # a chunk by itself

    def made() -> float:
        return len(Path(sample.processes).read_text().split()) / each

    batches = BatchStream(spec, processes=2).batches([request] * 40)
    next(batches)
    make_batch(request, spec)
    each = Path(sample.processes).read_text().split().count(str(os.getpid()))
    time.sleep(3)
    assert made() < 20
    assert len(list(batches)) == 39
    assert made() == 41


def test_batches_may_be_left_unfinished(requests: list[BatchRequest], spec: BatchSpec) -> None:
    assert len(list(islice(BatchStream(spec, processes=2).batches(requests), 2))) == 2


def test_two_views_of_an_image_differ_and_validation_images_do_not(
    requests: list[BatchRequest], spec: BatchSpec
) -> None:
    pair = requests[0].pairs[0]
    first, other = (
        make_batch(BatchRequest((pair,), item.samples[:1]), spec).images for item in (requests[0], requests[5])
    )
    assert not np.array_equal(first, other)
    once, again = (make_batch(BatchRequest((pair,)), spec).images for _ in range(2))
    assert np.array_equal(once, again)


def test_a_faulty_file_is_named(requests: list[BatchRequest], spec: BatchSpec) -> None:
    Path(requests[0].pairs[2].mask).write_bytes(encode_image(np.full((40, 56), 9, np.uint8)))
    with pytest.raises(RequestError, match=r"masks/.*png: holds the value 9"):
        list(BatchStream(spec, processes=2).batches(requests))
