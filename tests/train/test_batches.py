"""Ray Data hands over exactly the batches that were asked for, in order."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from unet.data.image import encode_image
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.data.settings import AugmentSettings, DataSettings
from unet.settings import Geometry, RequestError
from unet.train.batches import BatchStream
from unet.train.examples import BatchRequest, BatchSpec, make_batch
from unet.train.schedule import samples_of_step

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
    arrived = list(BatchStream(spec, tasks=2).batches(requests))
    assert [len(batch.images) for batch in arrived] == [4, 4, 4, 4, 4, 4, 2, 2, 1, 4]
    for item, batch in zip(requests, arrived, strict=True):
        expected = make_batch(item, spec)
        assert np.array_equal(batch.images, expected.images)
        assert np.array_equal(batch.masks, expected.masks)


def test_batches_may_be_left_unfinished(requests: list[BatchRequest], spec: BatchSpec) -> None:
    assert len(list(islice(BatchStream(spec, tasks=2).batches(requests), 2))) == 2


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
        list(BatchStream(spec, tasks=2).batches(requests))
