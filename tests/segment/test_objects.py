"""Objects of masks: those of the whole output are the rows whose part the report names."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.jobs.bench import Bench, Rows, fill, image_bytes, save_model
from unet.data.components import find_components
from unet.model.predictor import Prediction
from unet.segment.item import Item, Outcome
from unet.segment.job import _prepare, segment
from unet.segment.object_parts import find_objects
from unet.segment.recorder import Recorder
from unet.settings import RequestError
from unet.storage.objects import no_guard
from unet.storage.store import open_store

Objects = dict[str, list[dict[str, Any]]]


@pytest.fixture(params=["local", "s3"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Two images, local and on S3."""
    return filled(Bench(str(tmp_path / "place") if request.param == "local" else request.getfixturevalue("bucket")))


def filled(bench: Bench) -> Bench:
    save_model(bench.model, seed=9)  # whose masks have many pieces
    fill(bench.images, ["a.png", "deep/b.png"])
    return bench


def parts(bench: Bench) -> dict[str, pa.Table]:
    store = open_store(f"{bench.masks}/_segment/objects")
    return {item.key: pq.read_table(io.BytesIO(store.get(item.key))) for page in store.list() for item in page}


def objects(bench: Bench, report: Rows) -> Objects:
    """The objects that count, by key."""
    rows = [row for table in parts(bench).values() for row in table.to_pylist()]
    return {key: [row for row in rows if row["part"] == report[key]["objects"] and row["key"] == key] for key in report}


def assert_those_of_the_masks(bench: Bench, report: Rows, min_area: int = 1) -> None:
    """The objects that count are those of the masks that are there."""
    for key, rows in objects(bench, report).items():
        with Image.open(io.BytesIO(bench.mask(key))) as picture:
            mask = (np.asarray(picture) == 255).astype(np.uint8)
        expected = find_components(mask, mask, 1, "box", min_area)[0].to_pylist()
        for name in ("box_x", "box_y", "area", "polygon"):
            assert [row[name] for row in rows] == [row[name] for row in expected]
        assert {(row["etag"], row["mask_etag"]) for row in rows} <= {(report[key]["etag"], report[key]["mask_etag"])}
        assert all(0.5 <= row["confidence"] <= 1 for row in rows)  # of two classes the chosen one has at least half


def test_objects_are_those_of_the_masks_and_a_second_run_makes_none(bench: Bench) -> None:
    report = bench.run(objects="box", min_area=3)
    assert_those_of_the_masks(bench, report, 3)
    found = sum(map(len, objects(bench, report).values()))
    assert bench.summary["objects"] == {"box": found}
    assert found > 10
    assert bench.summary["small_objects"] > 10
    before = parts(bench).keys()
    again = bench.run(objects="box", min_area=3)
    assert {row["status"] for row in again.values()} == {"unchanged"}
    assert parts(bench).keys() == before
    assert_those_of_the_masks(bench, again, 3)


def test_another_request_makes_objects_again_and_no_mask(bench: Bench) -> None:
    store, first = open_store(bench.masks), bench.run(objects="box")
    before = {key: store.head(key) for key in bench.mask_keys()}
    report = bench.run(objects="box", min_area=20)
    assert {row["status"] for row in report.values()} == {"done"}
    assert {row["mask_etag"] for row in report.values()} == {row["mask_etag"] for row in first.values()}
    assert {key: store.head(key) for key in bench.mask_keys()} == before
    assert_those_of_the_masks(bench, report, 20)
    old = {row["objects"] for row in first.values()}
    assert {f"{name}.parquet" for name in old} < parts(bench).keys()
    bench.run(objects="box", min_area=20)  # which sees that the ledger names them no more
    assert parts(bench).keys().isdisjoint(f"{name}.parquet" for name in old)
    assert set(bench.statuses(objects="box,ground", min_area=20).values()) == {"done"}


def test_objects_are_made_for_masks_of_earlier_runs_and_stay_as_long_as_their_masks(bench: Bench) -> None:
    bench.run()
    report = bench.run(objects="box")
    assert_those_of_the_masks(bench, report)
    with_overlay = bench.run(write="mask,overlay")
    assert {row["status"] for row in with_overlay.values()} == {"done"}
    assert_those_of_the_masks(bench, with_overlay)
    assert set(bench.statuses(write="mask,overlay", objects="box").values()) == {"unchanged"}
    open_store(bench.images).put("a.png", image_bytes(77))
    changed = bench.run()
    assert [changed[key]["objects"] is None for key in ("a.png", "deep/b.png")] == [True, False]
    report = bench.run(objects="box")
    assert [report[key]["status"] for key in ("a.png", "deep/b.png")] == ["done", "unchanged"]
    assert_those_of_the_masks(bench, report)


def test_a_part_that_is_gone_is_made_again(bench: Bench) -> None:
    bench.run(objects="box")
    open_store(f"{bench.masks}/_segment/objects").delete(parts(bench))
    report = bench.run(objects="box")
    assert {row["status"] for row in report.values()} == {"done"}
    assert_those_of_the_masks(bench, report)


def test_an_image_without_objects_has_none_and_is_not_asked_again(bench: Bench) -> None:
    report = bench.run(objects="box", min_area=10_000)
    assert objects(bench, report) == {"a.png": [], "deep/b.png": []}
    assert set(bench.statuses(objects="box", min_area=10_000).values()) == {"unchanged"}


class StoppedError(Exception):
    """Nothing more is written."""


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_run_that_ends_between_objects_and_ledger_counts_neither(tmp_path: Path, writes: int, goes_on: bool) -> None:
    bench = filled(Bench(str(tmp_path)))
    model, spec = _prepare(bench.settings(objects="box"))
    left = iter(range(writes))

    def guard() -> None:
        if next(left, None) is None:
            raise StoppedError

    mask = np.eye(8, dtype=np.uint8)
    rows, _ = find_objects(Prediction(mask, mask), None, (), {1: "box"}, 1)
    recorder = Recorder(spec, model.labels, guard)
    recorder.add_outcomes([(Item("a.png", "e", 1, "mask,objects"), Outcome("done", mask_etag="m", objects=rows))])
    with suppress(StoppedError):
        recorder.flush_ledger()
    if goes_on:  # as after a fault of the storage
        recorder.guard = no_guard
        recorder.flush_ledger()
    recorder.discard()
    named = [f"{name}.parquet" for rows in spec.ledger.rows() for name in rows["objects"].to_pylist()]
    assert (len(parts(bench)), len(named)) == ((0, 0), (1, 0), (1, 1))[2 if goes_on else writes]
    assert {*named} <= parts(bench).keys()
    assert all(table.num_rows == 8 for table in parts(bench).values())
    assert_those_of_the_masks(bench, bench.run(objects="box"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"objects": "box,tree"}, "--objects box,tree: the model has no class tree; it has ground, box"),
        ({"objects": " ,"}, "--objects: name classes"),
        ({"objects": "box", "min_area": 0}, "--min-area"),
    ],
)
def test_a_request_that_cannot_be_right_is_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    Path(bench.images).mkdir()
    with pytest.raises(RequestError, match=said):
        _prepare(bench.settings(**given))


def test_a_whole_job_leaves_the_objects_of_its_masks(tmp_path: Path, one_ray: None) -> None:
    bench = filled(Bench(str(tmp_path)))
    assert segment(bench.settings(objects="box")) == 0
    report = bench.run(objects="box")
    assert {row["status"] for row in report.values()} == {"unchanged"}
    assert_those_of_the_masks(bench, report)
