"""How a segmentation run ends where something is wrong with all of it: never with 0, and nothing is deleted."""

import os
from collections import Counter
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import Mock

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from tests.jobs.bench import Bench, fill, image_bytes, save_model, without_ray
from tests.servers.proxy import Proxy
from unet.command_line import run
from unet.data.image import Array, encode_image
from unet.data.planes import read_array
from unet.segment import verdict
from unet.segment.item import Item
from unet.segment.job import _prepare, segment
from unet.segment.ledger import Ledger
from unet.segment.segmenter import Segmenter
from unet.segment.settings import SegmentSettings
from unet.storage.objects import join_uri, split_uri
from unet.storage.store import open_store


def end(bench: Bench, capsys: pytest.CaptureFixture[str], **given: Any) -> tuple[int, str]:
    """The exit code of the job, and the last line that it says of an error."""
    capsys.readouterr()
    settings = bench.settings(**given)
    flags = [
        word
        for name, value in given.items()
        for word in ([f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)])
    ]
    places = ["--input", settings.input, "--output", settings.output, "--model", settings.model]
    with without_ray():
        code = run(segment, SegmentSettings, [*places, *(flags if "input" not in given else flags[2:])])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) <= 1
    return code, "".join(said)


@pytest.fixture(params=["local", "s3"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Local, and on S3; with a model and ten images, all of them segmented."""
    bench = Bench(str(tmp_path / "place") if request.param == "local" else request.getfixturevalue("bucket"))
    save_model(bench.model)
    fill(bench.images, [f"{number}.png" for number in range(10)])
    return bench


def test_promise_31_a_typo_in_the_prefix_deletes_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run()
    wrong = bench.images[:-2] + "se"
    if wrong.startswith("/"):  # as where nothing is mounted
        Path(wrong).mkdir()
    code, said = end(bench, capsys, input=wrong, prune=True)
    assert (code, "nothing is there" in said) == (2, True)
    code, said = end(bench, capsys, input=wrong, prune=True, allow_empty=True)
    assert (code, "the input is empty, and nothing was deleted" in said) == (2, True)
    assert len(bench.all_masks()) == 10


def test_promise_31_a_second_input_into_one_output_deletes_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run()
    other = bench.images + "-2"
    fill(other, ["a.png"])
    code, said = end(bench, capsys, input=other, prune=True, max_delete="100%")
    assert code == 2
    assert f"the ledger also records masks of {bench.images}" in said
    assert len(bench.all_masks()) == 11


def test_promise_31_more_than_max_delete_deletes_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run()
    open_store(bench.images).delete(["3.png", "4.png"])
    code, said = end(bench, capsys, prune=True)
    assert code == 2
    assert "2 of 10 masks have lost their image, more than --max-delete 10%" in said
    assert len(bench.all_masks()) == 10
    assert end(bench, capsys, prune=True, max_delete="20%")[0] == 0
    assert len(bench.all_masks()) == 8
    assert end(bench, capsys, prune=True) == (0, "")


def test_promise_31_the_mask_of_an_image_that_broke_before_it_went_is_deleted(bench: Bench) -> None:
    bench.run(write="mask,overlay")
    open_store(bench.images).put("3.png", b"broken")
    assert bench.statuses(write="mask,overlay")["3.png"] == "failed"
    assert len(bench.all_masks()) == 10  # the last good one stays
    open_store(bench.images).delete(["3.png"])
    bench.run(write="mask,overlay", prune=True)
    assert bench.summary["removed"] == 1
    assert len(bench.all_masks()) == 9
    left = [item.key for page in open_store(bench.masks).list() for item in page]
    assert not [key for key in left if "3.png" in key]


def test_promise_31_images_that_a_server_lists_out_of_order_lose_no_mask(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As servers do that walk folders: all below a/ before a.png."""
    bench.run()
    store = type(open_store(bench.images))
    listed, shuffles = store.list_tables, count()

    def shuffled(self: Any, *bounds: Any) -> Any:
        pages = [page.slice(place, 1) for page in listed(self, *bounds) for place in range(len(page))]
        if self.uri == bench.images:
            pages = pages[5:7] + pages[:5] + pages[7:]
            next(shuffles)
        return iter(pages)

    monkeypatch.setattr(store, "list_tables", shuffled)
    assert set(bench.statuses(prune=True).values()) == {"unchanged"}
    assert (bench.summary["orphaned"], bench.summary["removed"]) == (0, 0)
    open_store(bench.images).delete(["2.png"])
    bench.run(prune=True)
    assert bench.summary["removed"] == 1
    assert "2.png.png" not in bench.all_masks()
    assert next(shuffles) == 2


def test_promise_32_an_input_without_images_is_no_success(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    other = bench.images + "-2"
    for number in range(4):
        open_store(other).put(f"{number}.svg", b"photo")
    code, said = end(bench, capsys, input=other)
    assert (code, "only files that are not looked at: 4 (.svg 4)" in said) == (2, True)
    if other.startswith("s3://"):
        code, said = end(bench, capsys, input=f"{bench.images}/3.png")
        assert (code, "is an object; name the folder" in said) == (2, True)
    open_store(other).delete([f"{number}.svg" for number in range(4)])
    assert end(bench, capsys, input=other)[0] == 2
    assert end(bench, capsys, input=other, allow_empty=True) == (0, "")
    assert end(bench, capsys, input=other) == (0, "")  # it was empty before
    fill(other, ["a.png"])
    assert end(bench, capsys, input=other) == (0, "")
    open_store(other).delete(["a.png"])
    assert end(bench, capsys, input=other)[0] == 2  # it was not


def test_promise_32_a_manifest_of_which_nothing_is_there_is_no_success(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    manifest = tmp_path / "keys.csv"
    manifest.write_text(f"key\n{bench.images}/images/1.png\n{bench.images}/images/2.png\n")
    code, said = end(bench, capsys, manifest=manifest)
    assert (code, "none of its 2 objects is in --input" in said) == (2, True)


def test_promise_32_an_input_that_vanishes_during_the_run_is_no_success(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = type(open_store(bench.images)).list_tables

    def vanishing(self: Any, *bounds: Any) -> Any:
        pages = list(listed(self, *bounds))
        self.delete([key for page in pages for key in page["key"].to_pylist()[3:]])
        return iter(pages)

    monkeypatch.setattr(type(open_store(bench.images)), "list_tables", vanishing)
    code, said = end(bench, capsys)
    assert (code, "7 of 10 objects were lost (0 failed, 0 changed, 7 vanished)" in said) == (3, True)
    assert len(bench.all_masks()) == 3


@pytest.fixture
def through_proxy(bench: Bench, proxy: Proxy) -> Proxy:
    if bench.images.startswith("/"):
        pytest.skip("a folder has no requests")
    fill(bench.images, [f"{number:03}.png" for number in range(100)])
    return proxy


@pytest.mark.parametrize(("action", "code", "word"), [("denied", 2, "allow to read"), ("503", 1, "SlowDown")])
@pytest.mark.parametrize("verb", ["GET", "PUT"])
def test_promise_33_a_fault_of_every_object_ends_the_run_after_a_few(
    bench: Bench, through_proxy: Proxy, capsys: pytest.CaptureFixture[str], action: Any, code: int, word: str, verb: str
) -> None:
    path = "*/images/*.png*" if verb == "GET" else "*/masks/*.png.png*"
    through_proxy.add(verb=verb, path=path, action=action)
    ended, said = end(bench, capsys, retry_for=0)
    assert (ended, word in said) == (code, True), said
    tried = {path for asked, path in through_proxy.requests if asked == "GET" and "/images/" in path}
    assert len(tried) <= 64  # what was begun by then
    through_proxy.rules.clear()
    assert set(bench.statuses().values()) == {"done"}  # no object was blamed


def test_promise_33_few_objects_that_all_meet_it_end_the_run_too(
    bench: Bench, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    if bench.images.startswith("/"):
        pytest.skip("a folder has no requests")
    proxy.add(verb="GET", path="*/images/*.png*", action="denied")
    assert end(bench, capsys)[0] == 2
    proxy.rules.clear()
    proxy.add(verb="GET", path="*/images/1.png*", action="denied")  # of one object alone: its row
    assert end(bench, capsys, max_failed="1") == (0, "")


def test_promise_33_more_failures_than_allowed_end_the_run_at_once(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench.images, [f"good-{number:03}.png" for number in range(150)])
    for number in range(10):
        open_store(bench.images).put(f"{number}.png", b"broken")
    code, said = end(bench, capsys, max_failed="5")
    assert (code, "more than --max-failed 5" in said) == (3, True)
    assert len(bench.all_masks()) < 150
    monkeypatch.setattr(verdict, "SHARE_AFTER", 20)
    code, said = end(bench, capsys, max_failed="0.1%", retry_failed=True)
    assert (code, "more than --max-failed 0.1%" in said) == (3, True)


@pytest.mark.parametrize("stage", ["unet.segment.segmenter.read_array", "unet.segment.writer.encode_mask", "predict"])
@pytest.mark.parametrize("error", [RuntimeError("cannot allocate\nmemory"), MemoryError(), TypeError("of C++")])
def test_promise_34_any_exception_on_one_object_is_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, [f"{number:02}.png" for number in range(30)])
    open_store(bench.images).put("bad.png", image_bytes(0, (44, 60)))
    name = "unet.model.predictor.Predictor.predict_many" if stage == "predict" else stage
    module, _, function = name.rpartition(".")
    original = pytest.importorskip(module.removesuffix(".Predictor"))
    original = getattr(getattr(original, "Predictor", original) if stage == "predict" else original, function)

    def fail_on_one(*given: Any, **more: Any) -> Any:
        result = original(*given, **more)
        shown: list[Array] = given[1] if stage == "predict" else [given[0] if stage.endswith("mask") else result[0]]
        if any(array.shape[:2] == (44, 60) for array in shown):
            raise error
        return result

    with monkeypatch.context() as patched:
        patched.setattr(name, fail_on_one)
        rows = bench.run(batch_size=4)
    assert Counter(row["status"] for row in rows.values()) == {"done": 30, "failed": 1}
    assert type(error).__name__ in rows["bad.png"]["error"]
    assert "\n" not in rows["bad.png"]["error"]
    assert bench.statuses()["bad.png"] == "done"  # it was not for ever


def test_promise_34_a_gpu_that_is_lost_ends_its_process_and_is_no_fault_of_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["0.png"])
    model, spec = _prepare(bench.settings())
    segmenter = Segmenter(spec, model)
    monkeypatch.setattr(segmenter.predictor, "predict_many", Mock(side_effect=RuntimeError("an illegal access")))
    monkeypatch.setattr(segmenter.predictor, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", Mock(side_effect=RuntimeError("an illegal access")))
    ended = Event()

    def end_process(_: int) -> None:
        ended.set()
        Event().wait()  # as nothing runs after the end

    monkeypatch.setattr(os, "_exit", end_process)
    outcome = segmenter.submit(Item("0.png", open_store(bench.images).head("0.png").etag, 1))
    assert ended.wait(60)
    assert not outcome.done()


@pytest.mark.parametrize("number_of_images", [10, pytest.param(25_000, marks=pytest.mark.slow)])
def test_promise_35_a_run_with_nothing_to_do_starts_no_worker_and_needs_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number_of_images: int
) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    data = image_bytes(0, (24, 24))
    for number in range(number_of_images):
        open_store(bench.images).put(f"{number:05}.png", data)
    bench.run()

    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(ray, "init", no_ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert segment(bench.settings(gpu=True)) == 0


def test_promise_44_hidden_and_foreign_files_are_left_alone_and_counted(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(bench.images)
    left_alone = ["._3.png", ".ipynb_checkpoints/3-checkpoint.png", "Thumbs.db", "a/.DS_Store", "a/b.svg", "c.SVG"]
    for key in left_alone:
        store.put(key, b"not an image")
    with without_ray():
        assert segment(bench.settings()) == 0
    said = capsys.readouterr().out
    assert "files not looked at: 6 (hidden 3, .svg 2, .db 1)" in said
    rows = bench.run()
    assert set(rows) == {f"{number}.png" for number in range(10)}
    assert bench.summary["not_matched"] == 6
    assert bench.summary["not_looked_at"][".svg"] == 2
    page = open_store(bench.masks).get(f"_segment/runs/{bench.summary['run']}/index.html").decode()
    assert ".svg 2" in page


def test_a_pattern_without_an_ending_takes_images_alone(bench: Bench) -> None:
    for key in ("2026/a.png", "2026/list.json", "2026/frame", "2025/b.png"):
        open_store(bench.images).put(key, image_bytes(1))
    assert set(bench.run(include=("2026/*",))) == {"2026/a.png", "2026/frame"}
    assert set(bench.run(include=("2026/*.json",))) == {"2026/list.json"}


def test_a_missing_overlay_is_made_and_nothing_else(bench: Bench) -> None:
    first = bench.run(write="mask,overlay")
    assert set(bench.statuses().values()) == {"unchanged"}  # less is asked for
    open_store(bench.images).put("new.png", image_bytes(77))
    assert Counter(bench.statuses().values()) == {"unchanged": 10, "done": 1}
    written = open_store(bench.masks)
    masks = {key: written.head(key).etag for key in bench.mask_keys()}
    rows = bench.run(write="mask,overlay")
    assert {key for key, row in rows.items() if row["status"] == "done"} == {"new.png"}
    assert {key: written.head(key).etag for key in bench.mask_keys()} == masks
    assert rows["new.png"]["mask_etag"] == masks["new.png.png"]
    assert written.get("_segment/overlay/new.png.png")
    assert first["1.png"]["mask_etag"] == rows["1.png"]["mask_etag"]
    assert set(bench.statuses(write="mask,overlay").values()) == {"unchanged"}
    rows = bench.run(write="mask,confidence")
    assert {row["status"] for row in rows.values()} == {"done"}
    assert {key: written.head(key).etag for key in bench.mask_keys()} == masks
    assert set(bench.statuses(write="mask,overlay,confidence").values()) == {"unchanged"}


def test_force_goes_on_where_it_was_interrupted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    done: list[str] = []
    for limit in (4, 4, 4):
        statuses = bench.statuses(force=True, limit=limit)
        done += [key for key, status in statuses.items() if status == "done"]
    assert sorted(done) == [f"{number}.png" for number in range(10)]
    assert set(bench.statuses(force=True).values()) == {"done"}  # the one before came to its end
    assert set(bench.statuses(force=True).values()) == {"done"}
    assert set(bench.statuses().values()) == {"unchanged"}


def test_force_ends_where_all_was_tried(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where objects were lost, or --limit was just enough: the next --force segments all of them again."""
    open_store(bench.images).put("broken.png", b"broken")
    assert end(bench, capsys, force=True)[0] == 3
    for _ in range(2):
        counts = Counter(bench.statuses(force=True, limit=11).values())
        assert counts == {"done": 10, "failed": 1}


def test_force_goes_on_after_failures_that_may_pass(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    tried = count()

    def fail_once(*arguments: Any, **more: Any) -> Any:
        if next(tried) == 3:
            raise RuntimeError("for want of memory")
        return read_array(*arguments, **more)

    monkeypatch.setattr("unet.segment.segmenter.read_array", fail_once)
    assert end(bench, capsys, force=True)[0] == 3
    assert Counter(bench.statuses(force=True).values()) == {"done": 1, "unchanged": 9}
    assert set(bench.statuses(force=True).values()) == {"done"}


def test_prune_without_the_right_to_delete_masks_is_refused_and_costs_one_row(
    bench: Bench, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    if bench.images.startswith("/"):
        pytest.skip("a folder has no requests")
    bench.run()
    open_store(bench.images).delete([f"{number}.png" for number in range(5)])
    proxy.add(verb="POST", path="*delete*", action="denied")
    proxy.add(verb="DELETE", action="denied")
    code, said = end(bench, capsys, prune=True, max_delete="100%")
    assert (code, "--prune: " in said, "leave --prune out" in said) == (2, True, True), said
    rows = [row for table in Ledger(join_uri(bench.masks, "_segment/ledger")).rows() for row in table.to_pylist()]
    assert Counter(row["status"] for row in rows) == {"done": 9, "failed": 1}
    proxy.rules.clear()
    assert end(bench, capsys, prune=True, max_delete="100%") == (0, "")
    assert len(bench.all_masks()) == 5


def test_promise_34_an_archived_object_that_no_listing_calls_so_is_its_row(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As of a manifest without storage classes, or in the archive tiers of S3's intelligent tiering."""
    if bench.images.startswith("/"):
        pytest.skip("a folder archives nothing")
    bucket, prefix = split_uri(bench.images)
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    for number in range(verdict.MAX_SHARED_FAULTS + 4):
        client.put_object(Bucket=bucket, Key=f"{prefix}/0-{number:02}.png", Body=b"x", StorageClass="GLACIER")
    listed = [item for page in open_store(bench.images).list() for item in page]
    rows = [{"key": item.key, "size": item.size, "etag": item.etag} for item in listed]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet")
    assert end(bench, capsys, manifest=tmp_path / "all.parquet", max_failed="100%") == (0, "")
    assert len(bench.all_masks()) == 10


def test_promise_33_an_object_of_a_manifest_that_is_denied_is_its_row(
    bench: Bench, proxy: Proxy, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if bench.images.startswith("/"):
        pytest.skip("a folder has no requests")
    manifest = tmp_path / "keys.csv"
    manifest.write_text("key\n" + "".join(f"{number}.png\n" for number in range(10)))
    for verb in ("HEAD", "GET"):
        proxy.add(verb=verb, path="*/images/1.png*", action="denied")
    assert end(bench, capsys, manifest=manifest, max_failed="1") == (0, "")
    assert len(bench.all_masks()) == 9


def test_the_output_is_listed_once_to_verify_it(bench: Bench, proxy: Proxy) -> None:
    if bench.images.startswith("/"):
        pytest.skip("a folder has no requests")
    bench.run()
    proxy.requests.clear()
    bench.run(verify=True)
    bucket = bench.masks.split("/")[2]
    listed = [path for verb, path in proxy.requests if verb == "GET" and "prefix=masks%2F&" in path and bucket in path]
    assert len(listed) == 1, listed


def test_a_night_without_the_right_to_delete_is_a_success(
    bench: Bench, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    if bench.images.startswith("/"):
        pytest.skip("a folder has no requests")
    proxy.add(verb="POST", path="*delete*", action="denied")
    proxy.add(verb="DELETE", action="denied")
    for number in range(3):
        open_store(bench.images).put(f"new-{number}.png", image_bytes(number))
        assert end(bench, capsys) == (0, "")
    assert set(bench.statuses().values()) == {"unchanged"}


def test_promise_36_images_that_do_not_fit_together_are_segmented_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, [f"{number}.png" for number in range(6)])
    for number in range(4):
        open_store(bench.images).put(f"large-{number}.png", encode_image(np.zeros((300, 400, 3), np.uint8)))
    monkeypatch.setattr("unet.segment.segmenter.MAX_DECODED_PIXELS", 40 * 56)
    monkeypatch.setattr("unet.segment.segmenter.MAX_ENCODED_BYTES", 100)
    assert set(bench.statuses(batch_size=4).values()) == {"done"}
