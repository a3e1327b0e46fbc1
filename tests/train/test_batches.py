"""Ray Data hands over exactly the batches that were asked for, in order."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from unet.data.image import encode
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.data.settings import AugmentSettings, DataSettings
from unet.runtime.session import METRICS
from unet.settings import Geometry, RequestError
from unet.train.batches import BatchRequest, BatchSpec, BatchStream, make_batch
from unet.train.schedule import samples_of_step

pytestmark = pytest.mark.usefixtures("one_ray")


@pytest.fixture
def view(boxes: Path) -> BatchSpec:
    return BatchSpec(read_labels(str(boxes / "classes.csv")), Geometry("resize", (24, 32)), AugmentSettings(), seed=5)


@pytest.fixture
def work(boxes: Path) -> list[BatchRequest]:
    """Six training batches of four, a validation of batches of two and one, and one more training batch."""
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))

    def training(step: int) -> BatchRequest:
        draws = samples_of_step(step, seed=5, rows=len(labelled.train), batch=4)
        return BatchRequest(tuple(labelled.train[draw.row] for draw in draws), tuple(draws))

    validation = [BatchRequest(labelled.val[start : start + 2]) for start in range(0, 5, 2)]
    return [*map(training, range(6)), *validation, training(6)]


def test_batches_arrive_whole_and_in_order(work: list[BatchRequest], view: BatchSpec) -> None:
    arrived = list(BatchStream(view, tasks=2).batches(work))
    assert [len(batch.images) for batch in arrived] == [4, 4, 4, 4, 4, 4, 2, 2, 1, 4]
    for item, batch in zip(work, arrived, strict=True):
        expected = make_batch(item, view)
        assert np.array_equal(batch.images, expected.images)
        assert np.array_equal(batch.masks, expected.masks)


def test_batches_may_be_left_unfinished(work: list[BatchRequest], view: BatchSpec) -> None:
    assert len(list(islice(BatchStream(view, tasks=2).batches(work), 2))) == 2


def test_two_views_of_one_image_differ_and_validation_images_do_not(work: list[BatchRequest], view: BatchSpec) -> None:
    pair = work[0].pairs[0]
    first, other = (make_batch(BatchRequest((pair,), item.draws[:1]), view).images for item in (work[0], work[5]))
    assert not np.array_equal(first, other)
    once, again = (make_batch(BatchRequest((pair,)), view).images for _ in range(2))
    assert np.array_equal(once, again)


def test_a_faulty_file_is_named(work: list[BatchRequest], view: BatchSpec) -> None:
    Path(work[0].pairs[2].mask).write_bytes(encode(np.full((40, 56), 9, np.uint8)))
    with pytest.raises(RequestError, match=r"masks/.*png: holds the value 9"):
        list(BatchStream(view, tasks=2).batches(work))


def test_where_nobody_gathers_metrics_a_plan_needs_no_actor_for_statistics() -> None:
    program = """
import os, ray
from ray.data._internal.stats import _StatsManager as manager
from unet.runtime.session import METRICS, keep_no_statistics
before = set(vars(manager))
keep_no_statistics()
assert manager.gen_dataset_id_from_stats_actor.__module__ != "unet.runtime.session"
os.environ[METRICS] = "0"
keep_no_statistics()
assert set(vars(manager)) == before, "Ray has other names for them"
assert manager.gen_dataset_id_from_stats_actor() != manager.gen_dataset_id_from_stats_actor()
manager.update_execution_metrics("", [], [], {})
manager.register_dataset_to_stats_actor("", [], None, None)
assert not ray.is_initialized()
"""
    environment = {name: value for name, value in os.environ.items() if name != METRICS}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=environment)
