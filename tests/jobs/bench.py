"""Segmentation runs in tests: a place with images, a model and masks, and the job's steps over it."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import torch

from tests.conftest import make_pair
from unet.data.image import encode_image
from unet.data.labels import Label, LabelSet
from unet.model.artifact import Model
from unet.model.network import UNet
from unet.runtime.pool import TaskQueue
from unet.segment import job
from unet.segment.item import Item, Outcome
from unet.segment.ledger import Ledger
from unet.segment.recorder import Recorder
from unet.segment.run_spec import INTERNAL, RunSpec
from unet.segment.segmenter import Segmenter
from unet.segment.settings import SegmentSettings
from unet.settings import Geometry
from unet.storage.objects import join_uri
from unet.storage.store import open_store

LABELS = LabelSet((Label(value=0, name="ground", color=(0, 0, 0)), Label(value=255, name="box", color=(255, 0, 0))))

NATIVE = Geometry("native", (32, 32))

Rows = dict[str, dict[str, Any]]


def save_model(uri: str, seed: int = 0, width: int = 4, geometry: Geometry = NATIVE, labels: LabelSet = LABELS) -> str:
    """Save a model with random weights; return `uri`."""
    torch.manual_seed(seed)
    network = UNet(classes=2, width=width, depth=2, norm="batch", dropout=0.0).eval()
    Model(network=network, labels=labels, geometry=geometry).save(uri)
    return uri


def image_bytes(seed: int, size: tuple[int, int] = (40, 56)) -> bytes:
    return encode_image(make_pair(seed, size)[0])


def fill(uri: str, keys: list[str]) -> None:
    """Store an image under each key, no two alike."""
    store = open_store(uri)
    for seed, key in enumerate(keys):
        store.put(key, image_bytes(seed))


def outcomes_of(segmenter: Segmenter, items: Iterable[Item]) -> list[Outcome]:
    return [future.result() for future in [segmenter.submit(item) for item in items]]


class LocalPool:
    """What the job's pool of workers does, in this process."""

    def __init__(self, _: type, arguments: tuple[RunSpec, Model], workers: object, **more: object) -> None:
        self.segmenter = Segmenter(*arguments)

    def stop(self) -> None:
        """There is nobody to end."""

    def process(self, queue: TaskQueue) -> Iterator[list[tuple[Item, Outcome]]]:
        while not queue.ended:
            queue.wait()
            begun = [(item, self.segmenter.submit(item)) for item in queue.take(32, 1)]
            for item, future in begun:
                yield [(item, future.result())]


@contextmanager
def without_ray() -> Iterator[None]:
    """Let the job have its workers in this process."""
    with (
        mock.patch.object(job, "WorkerPool", LocalPool),
        mock.patch.object(job, "connect_workers"),
        mock.patch.object(job, "check_shared"),
        mock.patch.object(job, "join_cluster"),
        mock.patch("ray.put", lambda model: model),
    ):
        yield


class Bench:
    """A place with images, a model and masks, and the job's steps run over it in this process."""

    def __init__(self, uri: str) -> None:
        self.images, self.masks, self.model = (join_uri(uri, name) for name in ("images", "masks", "model"))

    def settings(self, **given: Any) -> SegmentSettings:
        return SegmentSettings(**({"input": self.images, "output": self.masks, "model": self.model} | given))

    def run(self, **given: Any) -> Rows:
        """Run the job in this process, without Ray; return the rows of the report by key."""
        model, spec = job._prepare(self.settings(**{"max_failed": "100%"} | given))
        spec = replace(spec, forced_since=job._forced_since(spec))
        recorder = Recorder(spec, model.labels, reference=model.reference)
        with without_ray():
            self.refused = job._process(model, spec, recorder, mock.Mock())
        self.summary = recorder.finish(complete=True)
        return self.rows(spec.run)

    def rows(self, run: str) -> Rows:
        report = open_store(self.masks).get(f"_segment/runs/{run}/report.parquet")
        rows = pq.read_table(io.BytesIO(report)).to_pylist()
        assert len({row["key"] for row in rows}) == len(rows), "an object has two rows"
        return {row["key"]: row for row in rows}

    def statuses(self, **given: Any) -> dict[str, str]:
        return {key: row["status"] for key, row in self.run(**given).items()}

    def mask(self, key: str) -> bytes:
        return open_store(self.masks).get(f"{key}.png")

    def mask_keys(self) -> list[str]:
        store = open_store(self.masks)
        return [item.key for page in store.list() for item in page if not item.key.startswith("_segment/")]

    def all_masks(self) -> dict[str, bytes]:
        store = open_store(self.masks)
        return {key: store.get(key) for key in self.mask_keys()}

    def recorded_keys(self) -> set[str]:
        """Return the keys that the ledger has."""
        return {
            key for rows in Ledger(join_uri(self.masks, f"{INTERNAL}ledger")).rows() for key in rows["key"].to_pylist()
        }
