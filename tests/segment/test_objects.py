"""Objects of masks: those of the whole output are the rows whose part the ledger names."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.jobs.bench import Bench, Rows, fill, image_bytes, save_model, without_ray
from unet.data.components import find_components
from unet.model.predictor import Prediction
from unet.segment import job
from unet.segment.item import Item, Outcome
from unet.segment.job import _prepare, segment
from unet.segment.ledger import Ledger
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


def objects(bench: Bench, keys: Iterable[str]) -> Objects:
    """The objects that count, by key."""
    rows, part = [row for table in parts(bench).values() for row in table.to_pylist()], named(bench)
    return {key: [row for row in rows if (row["part"], row["key"]) == (part[key], key)] for key in keys}


def named(bench: Bench) -> dict[str, str | None]:
    """The part of each image that the ledger names."""
    tables = list(Ledger(f"{bench.masks}/_segment/ledger").rows())
    return {row["key"]: row["objects"] for table in tables for row in table.select(["key", "objects"]).to_pylist()}


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
    before, old = {key: store.head(key) for key in bench.mask_keys()}, set(named(bench).values())
    report = bench.run(objects="box", min_area=20)
    assert {row["status"] for row in report.values()} == {"done"}
    assert {row["mask_etag"] for row in report.values()} == {row["mask_etag"] for row in first.values()}
    assert {key: store.head(key) for key in bench.mask_keys()} == before
    assert_those_of_the_masks(bench, report, 20)
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
    bench.run()
    assert [named(bench)[key] is None for key in ("a.png", "deep/b.png")] == [True, False]
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


def test_the_query_of_the_page_gives_the_objects_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "jobs" / "README.md").read_text()
    query = re.search(r"```sql\n(SELECT o\..*?)```", page, re.DOTALL)
    assert query is not None
    monkeypatch.chdir(tmp_path)
    bench = filled(Bench(str(tmp_path)))
    bench.run(objects="box")
    open_store(bench.images).put("a.png", image_bytes(77))
    count = objects(bench, bench.run(objects="box"))
    found = duckdb.execute(f"SELECT key, area FROM ({query[1]})").fetchall()
    assert sorted(found) == sorted((key, row["area"]) for key, rows in count.items() for row in rows)
    assert sum(len(table) for table in parts(bench).values()) > len(found)


class StoppedError(Exception):
    """Nothing more is written."""


def killed(bench: Bench) -> None:
    """A run that ends before it has compacted its ledger."""
    model, spec = _prepare(bench.settings(objects="box"))
    recorder = Recorder(spec, model.labels)
    with without_ray():
        job._process(model, spec, recorder, mock.Mock())
    recorder.flush_ledger()
    recorder.discard()


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run write a part for each image."""
    monkeypatch.setattr("unet.segment.recorder.PART_SECONDS", (0.0, 0.0))


@pytest.mark.usefixtures("many_parts")
def test_the_parts_of_a_run_become_one_when_it_ends_and_so_do_those_of_a_run_that_was_killed(bench: Bench) -> None:
    report = bench.run(objects="box")
    (first,) = parts(bench)
    assert_those_of_the_masks(bench, report)
    fill(bench.images, ["a.png", "c.png", "d.png", "e.png"])  # the first one is as it was
    killed(bench)
    assert len(parts(bench)) == 1 + 3 + (named(bench)["a.png"] != first.removesuffix(".parquet"))
    again = bench.run(objects="box")
    assert {row["status"] for row in again.values()} == {"unchanged"}
    assert len(parts(bench)) == len({*named(bench).values()}) == 2
    assert first in parts(bench)
    assert_those_of_the_masks(bench, again)


@pytest.mark.usefixtures("many_parts")
def test_a_kill_at_any_step_of_a_merge_changes_no_objects(tmp_path: Path) -> None:
    bench = filled(Bench(str(tmp_path)))
    killed(bench)
    before = objects(bench, named(bench))
    model, spec = _prepare(bench.settings())
    for writes in count():
        left = iter(range(writes))

        def guard(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise StoppedError

        recorder = Recorder(spec, model.labels, guard)
        with suppress(StoppedError):
            recorder.compact_ledger()
            break
        assert [*map(len, objects(bench, before).values())] == [*map(len, before.values())]
        recorder.discard()
    assert writes > 3
    assert_those_of_the_masks(bench, bench.run(objects="box"))
    assert {name.removesuffix(".parquet") for name in parts(bench)} == {*named(bench).values()}


@pytest.mark.usefixtures("many_parts")
def test_a_part_that_cannot_be_merged_stays_as_it_is(tmp_path: Path) -> None:
    bench, keys = Bench(str(tmp_path)), [f"{letter}.png" for letter in "abcde"]
    save_model(bench.model, seed=9)
    fill(bench.images, keys)
    killed(bench)
    folder = tmp_path / "masks/_segment/objects"
    gone, damaged, newer = (folder / f"{named(bench)[key]}.parquet" for key in keys[:3])
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-9])
    pq.write_table(pq.read_table(newer).replace_schema_metadata({"format": "2"}), newer)
    report = bench.run(objects="box")
    assert [report[key]["status"] for key in keys] == ["done", *["unchanged"] * 4]
    assert {folder / f"{named(bench)[key]}.parquet" for key in keys[1:3]} == {damaged, newer}
    assert named(bench)["d.png"] == named(bench)["e.png"]


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
