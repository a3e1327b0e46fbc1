"""unet/README.md names every module, every file that the jobs leave, and what is in it."""

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import ROOT
from tests.jobs.bench import Bench, fill, save_model
from tests.structure import modules
from unet.command_line import run
from unet.data.settings import SetSettings
from unet.evaluate.job import evaluate
from unet.evaluate.settings import EvaluateSettings
from unet.segment.job import segment
from unet.segment.lease import acquire
from unet.storage import store
from unet.storage.store import open_store
from unet.train.job import train
from unet.train.settings import TrainSettings

PAGE = (ROOT / "unet" / "README.md").read_text()

Files = dict[str, list[str]]
"""Of each file that the page has below a heading the names in the first column of its table."""

TRAINING = "A training run: OUTPUT/NAME/"
SEGMENTATION = "An output of segmentation: OUTPUT/"
EVALUATION = "An evaluation: OUTPUT/"


def files_below(heading: str) -> Files:
    part = PAGE.split(f"\n### {heading}\n")[1].split("\n### ")[0]
    texts = re.findall(r"^#### (\S+)\n(.*?)(?=^#### |\Z)", part, re.MULTILINE | re.DOTALL)
    return {title: re.findall(r"`([^`]+)`", " ".join(first_column(text))) for title, text in texts}


def first_column(text: str) -> list[str]:
    return re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)


def assert_named(given: Iterable[str], named: Iterable[str]) -> None:
    """Each of `given` is one of `named`, in which words in capitals stand for anything, and each of these is given."""
    patterns = {name: re.compile(re.sub(r"[A-Z]+", ".+", re.escape(name))) for name in named}
    found = {item: {name for name, pattern in patterns.items() if pattern.fullmatch(item)} for item in given}
    assert [item for item, names in found.items() if not names] == [], "the page does not name them"
    assert patterns.keys() - set().union(*found.values()) == set(), "nothing has these names"


def all_files(folder: str) -> dict[str, bytes]:
    place = open_store(folder)
    return {item.key: place.get(item.key) for page in place.list() for item in page}


def the_file(files: dict[str, bytes], end: str) -> bytes:
    """The last of this name."""
    return files[max(key for key in files if key.endswith(end))]


def columns(data: bytes) -> list[str]:
    names: list[str] = pq.read_schema(io.BytesIO(data)).names
    return names


def train_briefly(boxes: Path, output: str) -> str:
    """Train a tiny network on `boxes`; return the folder of the run."""
    network = ["--size", "32", "48", "--width", "8", "--depth", "2", "--epochs", "1", "--batch-size", "4"]
    places = ["--data", str(boxes), "--classes", str(boxes / "classes.csv"), "--output", output, "--name", "run"]
    assert run(train, TrainSettings, [*places, *network]) == 0
    return f"{output}/run"


def test_every_module_has_its_line() -> None:
    named = re.findall(r"^\| `([\w/]+\.py)` \|", PAGE, re.MULTILINE)
    there = [file.relative_to(ROOT / "unet").as_posix() for file in modules() if file.stem != "__init__"]
    assert sorted(named) == sorted(there)


@pytest.mark.slow
def test_a_training_run_leaves_what_the_page_says(boxes: Path, tmp_path: Path, one_ray: None) -> None:
    page, left = files_below(TRAINING), all_files(train_briefly(boxes, str(tmp_path)))
    assert_named(left, page)
    model = json.loads(left["model/model.json"])
    assert_named(model, page["model/model.json"])
    assert set(model["scores"]) <= {*page["metrics.jsonl"], "confusion"}
    assert_named(json.loads(left["metrics.jsonl"].splitlines()[0]), page["metrics.jsonl"])
    assert_named(json.loads(left["identity.json"]), page["identity.json"])
    (checkpoint,) = [data for key, data in left.items() if key.startswith("checkpoints/")]
    state: dict[str, Any] = torch.load(io.BytesIO(checkpoint), weights_only=True)
    assert_named(state, page["checkpoints/step-STEP-DIGEST.pt"])


def test_a_segmentation_leaves_what_the_page_says(tmp_path: Path, one_ray: None) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    Path(bench.images).mkdir()
    assert segment(bench.settings(allow_empty=True)) == 0
    fill(bench.images, ["a.png"])
    assert segment(bench.settings(write="mask,overlay", objects="box", force=True)) == 0
    assert segment(bench.settings(preview=1)) == 0
    page, left = files_below(SEGMENTATION), all_files(bench.masks)
    assert_named(left, page)
    (objects,) = [data for key, data in left.items() if key.startswith("_segment/objects/")]
    assert_named(columns(objects), page["_segment/objects/FENCE-REQUEST-RANDOM.parquet"])
    assert pq.read_schema(io.BytesIO(objects)).metadata[b"format"] == b"1"
    assert_named(columns(the_file(left, "report.parquet")), page["_segment/runs/ID/report.parquet"])
    previews = {key: left.pop(key) for key in sorted(left) if key.startswith("_segment/previews/")}
    assert_named(json.loads(the_file(left, "summary.json")), page["_segment/runs/ID/summary.json"])
    assert_named(json.loads(the_file(previews, "summary.json")), page["_segment/previews/ID/summary.json"])
    assert_named(columns(the_file(previews, ".parquet")), page["_segment/previews/ID/preview.parquet"])
    (model,) = [data for key, data in left.items() if key.startswith("_segment/models/")]
    assert_named(json.loads(model), page["_segment/models/FINGERPRINT.json"])
    ledger = {key: data for key, data in left.items() if key.startswith("_segment/ledger/")}
    part, index = the_file(ledger, ".parquet"), the_file(ledger, ".index.json")
    assert_named(columns(part), page["_segment/ledger/FENCE-RANDOM.parquet"])
    assert pq.read_schema(io.BytesIO(part)).metadata[b"format"] == b"2"
    assert_named(json.loads(index), page["_segment/ledger/_FENCE-NUMBER.index.json"])


def test_a_lease_on_s3_says_what_the_page_says(bucket: str) -> None:
    lease = acquire(bucket, "_segment/lease", run="run", lifetime=60, fence=1)
    said = json.loads(store.read(f"{bucket}/_segment/lease"))
    lease.release()
    assert_named(said, files_below(SEGMENTATION)["_segment/lease"])


def test_an_evaluation_leaves_what_the_page_says(boxes: Path, tmp_path: Path, one_ray: None) -> None:
    model, output = save_model(str(tmp_path / "model")), str(tmp_path / "scores")
    settings = EvaluateSettings(
        data=SetSettings(data=str(boxes), classes=str(boxes / "classes.csv")), model=model, output=output, against=model
    )
    assert evaluate(settings) == 0
    page, left = files_below(EVALUATION), all_files(output)
    assert_named(left, page)
    assert_named(columns(left["images.parquet"]), page["images.parquet"])
    assert_named(json.loads(left["scores.json"]), page["scores.json"])


@pytest.mark.parametrize(("given", "named"), [(["a", "b"], ["a"]), (["a"], ["a", "b"]), (["iou."], ["iou.NAME"])])
def test_a_name_too_many_or_too_few_is_seen(given: list[str], named: list[str]) -> None:
    with pytest.raises(AssertionError):
        assert_named(given, named)
    assert_named(["a", "iou.box"], ["a", "iou.NAME"])
