"""The segmentation job's promises, each tried on the steps themselves; whole jobs on Ray at the end."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from tests.conftest import ROOT, make_pair, write_pair
from tests.jobs.bench import Bench, fill, image_bytes, outcomes_of, save_model
from tests.servers.proxy import Proxy
from tests.servers.s3 import rclone
from unet.data.drift import MIN_IMAGES
from unet.data.image import encode_image
from unet.data.labelled_set import find_labelled_set
from unet.data.planes import decode_image
from unet.data.settings import AugmentSettings, SetSettings
from unet.model.artifact import Model
from unet.model.predictor import Predictor
from unet.segment.item import Item
from unet.segment.job import _prepare, segment
from unet.segment.lease import LeaseLost
from unet.segment.listing import TODO, Listing, items_of
from unet.segment.segmenter import Segmenter
from unet.settings import RequestError
from unet.storage.store import open_store
from unet.train.examples import BatchRequest, BatchSpec, make_batch
from unet.train.loss import loss_sums
from unet.train.reference import measure_reference
from unet.train.validation import validate


@pytest.fixture(params=["local", "s3"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Local, and on S3."""
    return Bench(str(tmp_path / "place") if request.param == "local" else request.getfixturevalue("bucket"))


def items_to_segment(listing: Listing) -> list[Item]:
    return [item for rows in listing.tables() for item in items_of(rows.filter(pc.equal(rows["status"], TODO)))]


def test_every_image_gets_the_mask_that_the_predictor_gives_for_it_alone(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png", "deep/er/b.png", "c.png"])
    rows = bench.run()
    predictor = Predictor(Model.load(bench.model))
    for key, row in rows.items():
        with Image.open(io.BytesIO(bench.mask(key))) as picture:
            assert picture.mode == "P"
            assert picture.getpalette()[-3:] == [255, 0, 0]  # type: ignore[index]
            values = np.asarray(picture)
        expected = predictor.predict(decode_image(open_store(bench.images).get(key)))
        assert np.array_equal(values, expected * np.uint8(255))
        assert (row["status"], row["mask_key"]) == ("done", f"{key}.png")
    assert bench.summary["counts"] == {"done": 3}
    assert sum(bench.summary["class_shares"].values()) == pytest.approx(1)


def test_overlays_and_confidences_are_written_on_request(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    bench.run(write="mask,overlay,confidence")
    store = open_store(bench.masks)
    assert decode_image(store.get("_segment/overlay/a.png.png")).shape == (40, 56, 3)
    confidence = decode_image(store.get("_segment/confidence/a.png.png"))
    assert confidence.shape == (40, 56, 3)
    assert confidence.min() >= 127  # of two classes the chosen one has at least half
    page = store.get(f"_segment/runs/{bench.summary['run']}/index.html").decode()
    assert "a.png" in page


def test_promise_01_a_second_run_reads_and_writes_no_image_and_no_mask(on_s3: Bench, proxy: Proxy) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, [f"{i}.png" for i in range(5)])
    on_s3.run()
    proxy.requests.clear()
    assert set(on_s3.statuses().values()) == {"unchanged"}
    touched = [(verb, path) for verb, path in proxy.requests if ".png" in path and "_segment" not in path]
    assert not touched
    assert any("_segment/ledger" in path for _, path in proxy.requests)  # the proxy does see requests


def test_promise_02_only_what_changed_is_redone(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.png"])
    before = bench.run()
    data = bytearray(open_store(bench.images).get("a.png"))
    data[-1] ^= 1  # of the end marker's checksum: the same size, other bytes
    open_store(bench.images).put("a.png", bytes(data))
    open_store(bench.images).put("c.png", image_bytes(7))
    assert bench.statuses() == {"a.png": "done", "b.png": "unchanged", "c.png": "done"}
    assert set(bench.statuses(tta=True).values()) == {"done"}
    assert set(bench.statuses(tta=True, batch_size=4, workers="2").values()) == {"unchanged"}
    save_model(bench.model, seed=1)
    assert set(bench.statuses(tta=True).values()) == {"done"}
    assert set(bench.statuses(tta=True, force=True).values()) == {"done"}
    assert before["b.png"]["etag"]


def test_promise_03_no_two_keys_share_a_mask(bench: Bench) -> None:
    save_model(bench.model)
    keys = ["a.jpg", "a.png", "a", "a.jpg.png"]
    fill(bench.images, keys)
    rows = bench.run(include=("*",))  # names without an ending too
    assert {row["mask_key"] for row in rows.values()} == {f"{key}.png" for key in keys}
    assert set(bench.all_masks()) == {f"{key}.png" for key in keys}


def test_promise_04_every_listed_object_has_one_row_and_the_counts_add_up(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, [f"{i:03}.png" for i in range(40)])
    store = open_store(bench.images)
    store.put("broken.png", b"no image")
    store.put("empty.png", b"")
    store.put("notes.txt", b"not listed")
    rows = bench.run()
    assert set(rows) == {f"{i:03}.png" for i in range(40)} | {"broken.png", "empty.png"}
    assert bench.summary["counts"] == {"done": 40, "failed": 1, "skipped": 1}
    assert bench.summary["listed"] == 42
    assert bench.summary["not_matched"] == 1
    again = bench.statuses()
    assert again["broken.png"] == "failed_before"
    assert bench.statuses(retry_failed=True)["broken.png"] == "failed"
    assert bench.statuses(max_pixels=10_000)["broken.png"] == "failed"  # another limit may change what fails


@pytest.mark.parametrize(("allowed", "code"), [("50%", 3), ("51", 0)])
def test_promise_05_too_many_failures_are_exit_3(
    tmp_path: Path, one_ray: None, allowed: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    (tmp_path / "images").mkdir()
    for i in range(100):
        (tmp_path / "images" / f"{i:03}.png").write_bytes(b"poison" if i < 51 else image_bytes(0, (24, 24)))
    assert segment(bench.settings(max_failed=allowed)) == code
    assert ("more than --max-failed" in capsys.readouterr().err) == bool(code)
    assert segment(bench.settings(max_failed="0")) == 0  # failed before: not counted again


def test_promise_10_a_body_cut_short_or_altered_is_never_segmented(on_s3: Bench, proxy: Proxy) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, ["cut.png", "flipped.png", "whole.png"])
    proxy.add(verb="GET", path="*cut.png*", action="cut")
    proxy.add(verb="GET", path="*flipped.png*", action="flip")
    rows = on_s3.run()
    assert {key: row["status"] for key, row in rows.items()} == {
        "cut.png": "failed",
        "flipped.png": "failed",
        "whole.png": "done",
    }
    assert set(on_s3.all_masks()) == {"whole.png.png"}
    proxy.rules.clear()
    assert set(on_s3.statuses().values()) == {"done", "unchanged"}  # such a failure is not for ever


def test_promise_11_an_image_replaced_or_deleted_after_the_listing_is_reported(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, ["gone.png", "new.png", "same.png"])
    model, spec = _prepare(bench.settings())
    items = items_to_segment(Listing(spec))
    store = open_store(bench.images)
    store.delete(["gone.png"])
    store.put("new.png", image_bytes(9))
    outcomes = outcomes_of(Segmenter(spec, model), items)
    assert {item.key: outcome.status for item, outcome in zip(items, outcomes, strict=True)} == {
        "gone.png": "vanished",
        "new.png": "changed",
        "same.png": "done",
    }
    assert bench.statuses() == {"new.png": "done", "same.png": "done"}  # none of it was recorded as done


def test_an_image_for_which_memory_is_short_is_tried_again_by_the_next_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png"])

    def short(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("unet.data.image._to_rgb", short)
        (row,) = bench.run().values()
    assert (row["status"], "add memory" in row["error"]) == ("failed", True)
    assert bench.statuses() == {"a.png": "done"}


@pytest.mark.parametrize(
    ("fault", "code"), [(LeaseLost("another run has taken the output over"), 4), (RequestError(""), 2)]
)
def test_how_a_run_ends_is_counted_as_its_exit_code_says(
    on_s3: Bench, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: int
) -> None:
    save_model(on_s3.model)
    ends: list[int] = []

    def end(*_: object) -> int:
        raise fault

    monkeypatch.setattr("unet.segment.job.telemetry.record_end", lambda code, _: ends.append(code))
    monkeypatch.setattr("unet.segment.job._run", end)
    if code == 2:  # which unet.command_line makes of it
        with pytest.raises(RequestError):
            segment(on_s3.settings())
    else:
        assert segment(on_s3.settings()) == code
    assert ends == [code]


@pytest.mark.parametrize("fault", ["input", "output", "model", "weights"])
def test_promise_13_what_cannot_work_is_exit_2_before_a_worker_starts(
    bench: Bench, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    wrong = {"input": "s3://there-is-no-such-bucket/images", "output": "s3://there-is-no-such-bucket/masks"}
    given = {fault: wrong[fault]} if fault in wrong else {}
    if fault == "model":
        given = {"model": bench.images}
    if fault == "weights":
        open_store(bench.model).put("model.safetensors", b"damaged")
    if fault in wrong:
        wrong_here = bench.masks.startswith("/")
        if wrong_here:
            Path(bench.images).parent.joinpath("file").write_text("")
            given = {fault: bench.images + "-missing" if fault == "input" else bench.images.replace("images", "file")}
    with pytest.raises(RequestError, match="--model" if fault == "weights" else f"--{fault}"):
        segment(bench.settings(**given))
    assert not capsys.readouterr().out


def test_promise_14_every_page_is_read_or_the_run_fails(
    on_s3: Bench, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "100")
    save_model(on_s3.model)
    client = boto3.client("s3", endpoint_url=proxy.url)
    name = on_s3.images.split("/")[2]
    for i in range(210):
        client.put_object(Bucket=name, Key=f"images/{i:05}.png", Body=b"poison")
    proxy.add(verb="GET", path="*list-type=2*images*continuation-token*", action="503", nth=range(1))
    rows = on_s3.run()
    assert len(rows) == 210
    proxy.add(verb="GET", path="*list-type=2*images*continuation-token*", action="500")
    with pytest.raises(OSError, match="images"):
        on_s3.run(retry_for=1)


def test_promise_15_any_legal_key_is_segmented(on_s3: Bench) -> None:
    save_model(on_s3.model)
    keys = ["ünï/çode 图.png", "a b+c%20d?e#f&g=h.png", "../up.png", "a//b.png", "/lead.png", "x/./y.png", "q'\"<>.png"]
    fill(on_s3.images, [*keys, "trail.png/"])
    rows = on_s3.run()
    assert {key: row["status"] for key, row in rows.items()} == dict.fromkeys([*keys, "trail.png/"], "done")
    assert set(on_s3.all_masks()) == {f"{key}.png" for key in [*keys, "trail.png/"]}
    assert set(on_s3.statuses().values()) == {"unchanged"}


def test_promise_16_what_cannot_be_segmented_is_skipped_with_a_reason(on_s3: Bench) -> None:
    save_model(on_s3.model)
    bucket = on_s3.images.split("/")[2]
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.put_object(Bucket=bucket, Key="images/folder/", Body=b"")
    client.put_object(Bucket=bucket, Key="images/zero.png", Body=b"")
    client.put_object(Bucket=bucket, Key="images/cold.png", Body=image_bytes(0, (24, 24)), StorageClass="GLACIER")
    client.put_object(Bucket=bucket, Key="images/big.png", Body=bytes(5000))
    client.put_object(Bucket=bucket, Key="images/_segment/x.png", Body=image_bytes(0, (24, 24)))
    client.put_object(Bucket=bucket, Key=f"images/{'k' * 1013}.png", Body=image_bytes(0, (24, 24)))
    rows = on_s3.run(max_bytes=4999)
    assert {row["status"] for row in rows.values()} == {"skipped"}
    reasons = {key[:10]: row["error"] for key, row in rows.items()}
    for key, word in {
        "folder/": "folder marker",
        "zero.png": "0 bytes",
        "cold.png": "GLACIER",
        "big.png": "--max-bytes",
        "_segment/x": "_segment/",
        "kkkkkkkkkk": "1,024",
    }.items():
        assert word in reasons[key], reasons[key]


def test_promise_17_limits_are_checked_before_decoding(bench: Bench) -> None:
    save_model(bench.model)
    store = open_store(bench.images)
    store.put("bomb.png", encode_image(np.zeros((3000, 3000, 3), np.uint8)))
    store.put("thin.png", encode_image(np.zeros((1, 500, 3), np.uint8)))
    store.put("tall.png", encode_image(np.zeros((500, 1, 3), np.uint8)))
    rows = bench.run(max_pixels=1_000_000)
    assert rows["bomb.png"]["status"] == "failed"
    assert "9000000" in rows["bomb.png"]["error"].replace(",", "") or "3000 x 3000" in rows["bomb.png"]["error"]
    assert decode_image(bench.mask("thin.png")).shape == (1, 500, 3)
    assert decode_image(bench.mask("tall.png")).shape == (500, 1, 3)


def every_kind_of_image() -> dict[str, bytes]:
    """One picture in many modes and formats, and as EXIF turns it."""
    image = Image.fromarray(make_pair(3)[0])

    def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    kinds = {
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "gray.png": saved(image.convert("L"), "PNG"),
        "gray16.png": saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8), "PNG"),
        "palette.png": saved(image.convert("P"), "PNG"),
        "alpha.png": saved(image.convert("RGBA"), "PNG"),
        "animated.gif": saved(image.convert("P"), "GIF", save_all=True, append_images=[image.convert("P").rotate(180)]),
        "animated.webp": saved(image, "WEBP", save_all=True, append_images=[image.rotate(180)]),
    }
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        kinds[f"exif{turn}.jpg"] = saved(image, "JPEG", exif=exif)
    return kinds


def test_promise_18_every_kind_of_image_gets_a_mask_of_its_displayed_size_or_a_clear_row(bench: Bench) -> None:
    save_model(bench.model)
    store = open_store(bench.images)
    kinds = every_kind_of_image()
    for key, data in kinds.items():
        store.put(key, data)
    store.put("truncated.jpg", kinds["exif1.jpg"][:-200])
    store.put("text.png", b"<html>not found</html>")
    rows = bench.run()
    for key in kinds:
        assert rows[key]["status"] == "done", rows[key]
        turned = key in {f"exif{turn}.jpg" for turn in (5, 6, 7, 8)}
        assert decode_image(bench.mask(key)).shape[:2] == ((56, 40) if turned else (40, 56)), key
    assert rows["truncated.jpg"]["status"] == rows["text.png"]["status"] == "failed"
    assert "cannot be decoded" in rows["truncated.jpg"]["error"]
    assert "not an image" in rows["text.png"]["error"]


def test_promise_22_masks_depend_on_neither_order_nor_batch_nor_workers(tmp_path: Path, one_ray: None) -> None:
    bench = Bench(str(tmp_path))
    model = Model.load(save_model(bench.model, width=8))
    store = open_store(bench.images)
    sizes = [(40, 56), (40, 56), (41, 55), (64, 64), (33, 80)] * 6
    for seed, size in enumerate(sizes):
        store.put(f"{seed:02}.png", image_bytes(seed, size))
    bench.run()
    expected = bench.all_masks()
    assert len(set(expected.values())) == len(expected)  # the masks do differ
    ways: tuple[dict[str, Any], ...] = ({"workers": "1"}, {"workers": "2", "batch_size": 8})
    for number, given in enumerate(ways):
        settings = bench.settings(output=f"{bench.masks}-{number}", **given)
        assert segment(settings) == 0
        other = Bench(str(tmp_path))
        other.masks = settings.output
        assert other.all_masks() == expected
    settings = bench.settings(output=f"{bench.masks}-shuffled", batch_size=8)
    _, spec = _prepare(settings)
    items = items_to_segment(Listing(spec))
    random.Random(0).shuffle(items)
    outcomes_of(Segmenter(spec, model), items)
    other.masks = settings.output
    assert other.all_masks() == expected


@pytest.mark.parametrize(("inside", "outside"), [("images/masks", "images"), ("images", "images/sub"), ("a", "a")])
def test_promise_24_output_inside_input_or_the_reverse_is_refused(bench: Bench, inside: str, outside: str) -> None:
    save_model(bench.model)
    root = bench.images.removesuffix("/images")
    with pytest.raises(RequestError, match=r"--output .* --input"):
        segment(bench.settings(input=f"{root}/{outside}", output=f"{root}/{inside}"))
    assert bench.settings(input=f"{root}/images", output=f"{root}/images-masks")  # a common prefix is no folder


def test_promise_26_a_key_never_names_a_path_outside_the_output(on_s3: Bench, tmp_path: Path) -> None:
    save_model(on_s3.model)
    keys = ["../../escape.png", "/abs.png", "a//b.png", "a/../../c.png", "ok/fine.png"]
    fill(on_s3.images, keys)
    folder = tmp_path / "deep" / "masks"
    on_s3.masks = str(folder)
    rows = on_s3.run()
    assert {key for key, row in rows.items() if row["status"] == "done"} == {"ok/fine.png"}
    assert {row["status"] for key, row in rows.items() if key != "ok/fine.png"} == {"skipped"}
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    assert not outside


def test_verify_redoes_masks_that_are_missing_or_altered(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.png", "c.png"])
    bench.run()
    store, expected = open_store(bench.masks), bench.all_masks()
    store.delete(["a.png.png"])
    store.put("b.png.png", b"something else")
    assert set(bench.statuses().values()) == {"unchanged"}
    assert bench.statuses(verify=True) == {"a.png": "done", "b.png": "done", "c.png": "unchanged"}
    assert bench.all_masks() == expected
    assert set(bench.statuses(verify=True).values()) == {"unchanged"}


@pytest.mark.parametrize("more", [{"write": "mask,overlay"}, {"objects": "box"}])
def test_verify_redoes_a_missing_mask_that_lacks_something_else_too(tmp_path: Path, more: dict[str, str]) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    bench.run()
    mask = bench.mask("a.png")
    open_store(bench.masks).delete(["a.png.png"])
    bench.run(verify=True, **more)
    assert bench.mask("a.png") == mask


def test_prune_removes_the_masks_of_images_that_are_gone_and_only_with_the_flag(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.png"])
    bench.run(write="mask,overlay")
    open_store(bench.images).delete(["b.png"])
    bench.run(write="mask,overlay")
    assert bench.summary["orphaned"] == 1
    assert set(bench.all_masks()) == {"a.png.png", "b.png.png"}
    bench.run(write="mask,overlay", prune=True, max_delete="1")
    assert (bench.summary["orphaned"], bench.summary["removed"]) == (0, 1)
    assert set(bench.all_masks()) == {"a.png.png"}
    open_store(bench.images).put("b.png", image_bytes(1))
    assert bench.statuses(write="mask,overlay") == {"a.png": "unchanged", "b.png": "done"}
    for flag in ({"include": ("*",)}, {"manifest": "x.csv"}, {"limit": 1}):
        with pytest.raises(RequestError, match="--prune needs a whole listing"):
            bench.settings(prune=True, **flag)


def test_prune_leaves_the_masks_of_images_whose_names_do_not_match(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.bin"])
    bench.run(include=("*.bin", "*"))
    assert set(bench.all_masks()) == {"a.png.png", "b.bin.png"}
    bench.run(prune=True)
    assert (bench.summary["orphaned"], bench.summary["removed"]) == (0, 0)
    assert set(bench.all_masks()) == {"a.png.png", "b.bin.png"}


def test_prune_removes_nothing_before_all_that_is_listed_has_been_taken(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.png"])
    bench.run()
    open_store(bench.images).delete(["b.png"])
    _, spec = _prepare(bench.settings(prune=True))
    assert next(Listing(spec).tables())["key"].to_pylist() == ["a.png"]
    assert set(bench.all_masks()) == {"a.png.png", "b.png.png"}


def test_a_manifest_names_what_is_segmented(bench: Bench, tmp_path: Path) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.bin", "c.png"])
    manifest = tmp_path / "keys.csv"
    manifest.write_text("key\na.png\nb.bin\na.png\nmissing.png\n")
    assert bench.statuses(manifest=str(manifest)) == {"a.png": "done", "b.bin": "done", "missing.png": "vanished"}
    assert bench.statuses() == {"a.png": "unchanged", "c.png": "done"}
    manifest.write_text("key,more\na.png,1\n/a.png,1\n./c.png,1\nc.png,1\n\n" + "k" * 1100 + ",1\n")
    assert set(bench.statuses(manifest=str(manifest), exclude=("c*",)).values()) == {"unchanged", "vanished"}
    assert "c.png.png" in bench.all_masks()
    manifest.write_text("key,more\na.png,1\nc.png,1\n")
    assert set(bench.run(manifest=str(manifest), exclude=("c*",))) == {"a.png"}
    manifest.write_text("more,key\n1\n")  # a row cut short
    with pytest.raises(RequestError, match="none of its 1 objects is in --input"):
        bench.run(manifest=str(manifest))
    manifest.write_text("name\na.png\n")
    with pytest.raises(RequestError, match="column key"):
        bench.run(manifest=str(manifest))


def test_patterns_and_limit_choose_what_is_segmented(bench: Bench) -> None:
    save_model(bench.model)
    fill(bench.images, ["2026/a.png", "2026/b.png", "2025/c.png", "raw.bin"])
    assert set(bench.run(include=("2026/*",), exclude=("*b.png",))) == {"2026/a.png"}
    statuses = list(bench.statuses(limit=1).values())
    assert statuses.count("done") == 1
    assert sorted(bench.statuses().values()) == ["done", "unchanged", "unchanged"]


def test_images_of_training_are_as_in_training_and_darker_ones_have_drifted(tmp_path: Path) -> None:
    dark, keys = open_store(str(tmp_path / "dark")), [f"{seed:03}.png" for seed in range(MIN_IMAGES)]
    for seed, key in enumerate(keys):
        image, mask = make_pair(seed, (132, 136))  # of which not every pixel is looked at
        write_pair(tmp_path, f"{seed:03}", image, 255 * mask)
        dark.put(key, encode_image(image // 2))
    (tmp_path / "place").mkdir()
    bench = Bench(str(tmp_path / "place"))
    model = Model.load(save_model(bench.model))
    bench.run(input=str(tmp_path / "images"))
    assert bench.summary.get("drift", 0) is None  # the model says nothing of training
    found = find_labelled_set(SetSettings(images=str(tmp_path / "images"), masks=str(tmp_path / "masks")))
    pairs, spec = found.train + found.val, BatchSpec(model.labels, model.geometry, AugmentSettings(), seed=0)
    batches = [make_batch(BatchRequest((pair,)), spec) for pair in pairs]
    masks = validate(Predictor(model), partial(loss_sums, class_weights=None, with_dice=False), batches).statistics
    images = measure_reference(pairs, model.channels, classes=2, limit=MIN_IMAGES)
    model.reference = replace(masks, images=images.images, histograms=images.histograms)
    model.save(bench.model)
    assert bench.statuses(input=str(tmp_path / "images")) == dict.fromkeys(keys, "unchanged")
    bench.run(input=str(tmp_path / "images"), force=True)
    drift, colours = bench.summary["drift"], ["red", "green", "blue"]
    assert drift["psi"] == dict.fromkeys((*colours, "classes"), 0.0)
    assert drift["confidence"] == pytest.approx(drift["reference_confidence"], abs=1e-3)
    assert (drift["images"], drift["reference_images"], drift["drifted"]) == (MIN_IMAGES, MIN_IMAGES, [])
    bench.masks = str(tmp_path / "masks-of-dark")
    bench.run(input=str(tmp_path / "dark"))
    assert set(colours) <= set(bench.summary["drift"]["drifted"])


def test_a_dry_run_says_what_and_why_and_changes_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.png"])
    bench.run()
    before = [item for page in open_store(bench.masks).list() for item in page]
    open_store(bench.images).put("b.png", image_bytes(9))
    open_store(bench.images).put("c.png", image_bytes(8))
    assert segment(bench.settings(dry_run=True)) == 0
    said = capsys.readouterr().out
    for line in ("1  segment: changed", "1  segment: new", "1  unchanged"):
        assert line in said
    assert [item for page in open_store(bench.masks).list() for item in page] == before
    save_model(bench.model, seed=1)
    segment(bench.settings(dry_run=True))
    assert "1  segment: model or settings changed" in capsys.readouterr().out


def test_batches_of_what_is_fetched_make_the_same_masks_within_the_budget_of_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: more images to a batch than the budget has room for must not wait for one another."""
    bench = Bench(str(tmp_path))
    model = Model.load(save_model(bench.model))
    fill(bench.images, [f"{i}.png" for i in range(20)])
    open_store(bench.images).put("broken.png", b"poison")
    bench.run()
    expected = bench.all_masks()
    settings = bench.settings(output=f"{bench.masks}-2", write="mask,confidence", batch_size=8)
    _, spec = _prepare(settings)
    monkeypatch.setattr("unet.segment.segmenter.MAX_DECODED_PIXELS", 3 * 40 * 56)
    items = items_to_segment(Listing(spec))
    outcomes = outcomes_of(Segmenter(spec, model), items)
    failed = [item.key for item, outcome in zip(items, outcomes, strict=True) if outcome.status != "done"]
    assert (len(items), failed) == (21, ["broken.png"])
    bench.masks = settings.output
    assert bench.all_masks() == expected


def test_the_job_itself_on_ray_and_s3(bucket: str, one_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(bucket)
    save_model(bench.model)
    fill(bench.images, [f"{i:02}.png" for i in range(40)])
    assert segment(bench.settings()) == 0
    assert "40 done" in capsys.readouterr().out
    assert len(bench.all_masks()) == 40
    runs = {
        item.key.split("/")[2] for page in open_store(f"{bench.masks}").list() for item in page if "/runs/" in item.key
    }
    summary = json.loads(open_store(bench.masks).get(f"_segment/runs/{runs.pop()}/summary.json"))
    assert summary["complete"]
    assert segment(bench.settings()) == 0
    assert "40 unchanged" in capsys.readouterr().out


def test_a_faulty_request_is_one_line_and_exit_2(tmp_path: Path) -> None:
    flags = ["--input", str(tmp_path / "none"), "--output", str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    command = [sys.executable, "jobs/segment.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--model" in done.stderr


def test_a_damaged_ledger_part_is_named_before_a_worker_starts(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    open_store(bench.masks).put(f"_segment/ledger/{1:012d}-{'0' * 32}.parquet", b"damaged")
    assert segment(bench.settings()) == 2
    assert "is damaged; delete it" in capsys.readouterr().err


@pytest.mark.slow
def test_camvid_on_a_server_with_real_files_twice(camvid: Path, tmp_path: Path) -> None:
    images, masks = tmp_path / "bucket" / "images", tmp_path / "bucket" / "masks"
    shutil.copytree(camvid / "train", images)
    model = Model.load(save_model(str(tmp_path / "model"), width=8))
    flags = ["--input", "s3://bucket/images", "--output", "s3://bucket/masks", "--model", str(tmp_path / "model")]
    command = [sys.executable, "jobs/segment.py", *flags]
    with rclone(tmp_path) as url, Proxy(url) as between:
        environment = os.environ | {"AWS_ENDPOINT_URL": between.url}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        between.requests.clear()
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        seconds = time.monotonic() - began
        assert "367 unchanged" in done.stdout
        assert not [path for _, path in between.requests if path.endswith((".jpg", ".jpg.png"))]
    print(f"the second run took {seconds:.1f} s")
    predictor = Predictor(model)
    for image in sorted(images.iterdir()):
        with Image.open(masks / f"{image.name}.png") as picture:
            assert (picture.mode, picture.size) == ("P", (480, 360))
            expected = predictor.predict(decode_image(image.read_bytes())) * np.uint8(255)
            assert np.array_equal(np.asarray(picture), expected), image.name


def test_gpu_without_one_is_refused(tmp_path: Path, one_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    assert segment(bench.settings(gpu=True)) == 2
    assert "--gpu: the cluster has no GPU" in capsys.readouterr().err
