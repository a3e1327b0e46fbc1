"""What an object costs in CPU time beside its pixels: `python -m tests.benchmarks.overhead`.

A worker's segmenter, in this process, segments a bucket of a local server, which is another process: in turns with the
client of the jobs and with boto3 alone. Its CPU time an object is split into decoding, the network and encoding, each
measured by itself in one thread, and the rest: the client, the threads and what is counted. It is measured with
predictions that are there already: beside other threads the network takes longer, by more than the rest. Beside it
stand the driver's ledger and report. The exchange with workers through Ray is not in it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.benchmarks.client import WAYS, send_at_once
from tests.benchmarks.segmentation import fill, save_model
from tests.servers.s3 import rclone
from unet.data.image import Array, encode_mask, open_image
from unet.data.planes import read_array
from unet.model.artifact import Model
from unet.model.predictor import Prediction, Predictor
from unet.sample.write import write_sample_set
from unet.segment import job
from unet.segment.item import Item, Outcome
from unet.segment.listing import Listing, items_of
from unet.segment.recorder import Recorder
from unet.segment.run_spec import RunSpec
from unet.segment.segmenter import Segmenter
from unet.segment.settings import SegmentSettings
from unet.segment.writer import Writer
from unet.storage import s3
from unet.storage.s3_client import client


def milliseconds(act: Callable[[], object], objects: int) -> float:
    """CPU time an object."""
    began = time.process_time()
    act()
    return (time.process_time() - began) / objects * 1e3


Ready = dict[bytes, Prediction]
"""What was predicted, by some pixels of the image."""


def some_pixels(image: Array) -> bytes:
    """What tells images apart."""
    return image[::40, ::40].tobytes()


def parts_of(
    spec: RunSpec, model: Model, predictor: Predictor, items: Sequence[Item]
) -> tuple[dict[str, float], Ready]:
    """CPU time an object of what is done with its pixels, and what is predicted for them."""
    bodies = [spec.input_store.get(item.key) for item in items]
    images: list[Array] = []
    parts = {
        "decode": milliseconds(
            lambda: images.extend(read_array(open_image(body), spec.channels)[0] for body in bodies), len(items)
        )
    }
    writer, ready = Writer(spec, model), Ready()

    def predict() -> None:
        for image in images:
            (result,) = predictor.predict_many([image], confidence=True)
            assert not isinstance(result, MemoryError)
            ready[some_pixels(image)] = result

    parts["network"] = milliseconds(predict, len(items))
    parts["encode"] = milliseconds(
        lambda: [
            encode_mask(ready[some_pixels(image)].mask, model.labels, provenance=writer.provenance) for image in images
        ],
        len(items),
    )
    return parts, ready


def measure(spec: RunSpec, model: Model, rounds: int) -> None:
    """Print the medians."""
    torch.set_num_threads(1)
    items = [item for rows in Listing(spec).tables() for item in items_of(rows)]
    segmenter, settled = Segmenter(spec, model), list[tuple[Item, Outcome]]()
    predictor = Predictor(model)
    taken: dict[str, list[float]] = {}
    client().meta.events.register_last("before-call.s3", send_at_once)

    ready = Ready()

    def predict_many(images: Sequence[Array], *_: Any, **__: Any) -> list[Prediction | MemoryError]:
        return [ready[some_pixels(image)] for image in images]

    segmenter.predictor.predict_many = predict_many  # type: ignore[method-assign]

    def segment_all() -> None:
        settled[:] = [(item, future.result()) for item, future in [(item, segmenter.submit(item)) for item in items]]

    def record_all() -> None:
        recorder = Recorder(spec, model.labels)
        for start in range(0, len(settled), 16):
            recorder.add_outcomes(settled[start : start + 16])
        recorder.finish(complete=True)

    for turn in range(rounds + 1):
        figures, ready = parts_of(spec, model, predictor, items)
        pixels = figures["decode"] + figures["encode"]
        for way, found in WAYS.items():
            with mock.patch.object(s3, "object_client", found):
                figures[f"rest, {way}"] = milliseconds(segment_all, len(items)) - pixels
        figures["ledger and report"] = milliseconds(record_all, len(items))
        for name, value in figures.items() if turn else ():  # the first makes connections
            taken.setdefault(name, []).append(value)
    for name, values in taken.items():
        print(f"{name:>18}  {statistics.median(values):6.2f} ms", flush=True)


def main() -> None:
    """Parses the arguments and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_sample_set(f"{folder}/sample")
        root = Path(folder, "server")
        (root / "masks").mkdir(parents=True)
        fill(root, sorted(Path(folder, "sample", "train").iterdir()), given.images)
        model = save_model("small", Path(folder))
        with rclone(root):
            settings: dict[str, Any] = {
                "model": str(model),
                "input": f"s3://images-{given.images}",
                "output": "s3://masks",
            }
            loaded, spec = job._prepare(SegmentSettings(**settings))
            measure(spec, loaded, given.rounds)


if __name__ == "__main__":
    main()
