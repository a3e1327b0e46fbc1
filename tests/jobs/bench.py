"""Segmentation runs in tests: a place with images, a model and masks, and the job's steps over it."""

import io
from typing import Any

import pyarrow.parquet as pq
import torch

from tests.conftest import make_pair
from unet.data.image import encode_image
from unet.data.labels import Label, LabelSet
from unet.model.artifact import Model
from unet.model.network import UNet
from unet.segment.job import _prepare
from unet.segment.ledger import Ledger
from unet.segment.listing import list_chunks
from unet.segment.recorder import Recorder
from unet.segment.run_spec import INTERNAL
from unet.segment.segmenter import Segmenter
from unet.segment.settings import SegmentSettings
from unet.settings import Geometry
from unet.storage.objects import join_uri
from unet.storage.store import open_store

LABELS = LabelSet((Label(value=0, name="ground", color=(0, 0, 0)), Label(value=255, name="box", color=(255, 0, 0))))

Rows = dict[str, dict[str, Any]]


def save_model(uri: str, seed: int = 0, width: int = 4) -> str:
    """Save a model with random weights; return `uri`."""
    torch.manual_seed(seed)
    network = UNet(classes=2, width=width, depth=2, norm="batch", dropout=0.0).eval()
    Model(network=network, labels=LABELS, geometry=Geometry("native", (32, 32))).save(uri)
    return uri


def image_bytes(seed: int, size: tuple[int, int] = (40, 56)) -> bytes:
    return encode_image(make_pair(seed, size)[0])


def fill(uri: str, keys: list[str]) -> None:
    """Store an image under each key, no two alike."""
    store = open_store(uri)
    for seed, key in enumerate(keys):
        store.put(key, image_bytes(seed))


class Bench:
    """A place with images, a model and masks, and the job's steps run over it in this process."""

    def __init__(self, uri: str) -> None:
        self.images, self.masks, self.model = (join_uri(uri, name) for name in ("images", "masks", "model"))

    def settings(self, **given: Any) -> SegmentSettings:
        return SegmentSettings(**({"input": self.images, "output": self.masks, "model": self.model} | given))

    def run(self, **given: Any) -> Rows:
        """Run the steps without Ray; return the rows of the report by key."""
        model, spec = _prepare(self.settings(**given))
        recorder, segmenter = Recorder(spec, model.labels), Segmenter(spec, model)
        for chunk in list_chunks(spec):
            recorder.add_chunk(segmenter(chunk))
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
        ledger = Ledger(join_uri(self.masks, f"{INTERNAL}ledger"))
        return {key for keys in ledger.find_keys(ledger.load()._columns["key_hash"]) for key in keys}
