"""`unet explain`: what is said of a mask, and of what is none of ours."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import make_pair
from tests.jobs.bench import Bench, fill, image_bytes, save_model
from unet.command_line import main
from unet.data.image import encode_image
from unet.model.artifact import Model
from unet.storage.objects import join_uri
from unet.storage.store import open_store


@pytest.fixture(params=["local", "s3"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Local, and on S3; with a model, and two images segmented."""
    bench = Bench(str(tmp_path / "place") if request.param == "local" else f"{request.getfixturevalue('bucket')}/deep")
    save_model(bench.model)
    fill(bench.images, ["a/b.png", "c.png"])
    bench.run(tile=64)
    return bench


def said(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, str]:
    """What `unet explain` says, by the word that a line begins with."""
    capsys.readouterr()
    assert main(["explain", *flags]) == 0
    return {line.split()[0]: line[10:] for line in capsys.readouterr().out.splitlines()}


def test_a_mask_is_traced_to_its_image_model_settings_and_run(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, join_uri(bench.masks, "a/b.png.png"), "--model", bench.model)
    image = open_store(bench.images).head("a/b.png")
    assert lines["image"] == f"{bench.images}/a/b.png, {image.size:,} bytes, etag {image.etag}"
    assert lines["mask"].endswith("as it was recorded")
    assert lines["model"] == f"{bench.model}, digest {Model.load(bench.model).digest}"
    assert "precision auto, tile 64, tta False" in lines["settings"]
    assert bench.summary["fingerprint"] in lines["settings"]
    assert lines["classes"] == "0=ground,255=box"
    assert lines["run"].startswith(f"{bench.summary['run']}, number 1, recorded 20")
    assert lines["today"] == "the same would be made"


def test_the_key_of_an_image_will_do_where_the_output_is_named(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    by_uri = said(capsys, join_uri(bench.masks, "a/b.png.png"))
    assert said(capsys, "a/b.png", "--output", bench.masks) == by_uri
    assert by_uri["today"] == "the same would be made; give --model to compare the model"


def test_what_has_changed_since_is_said(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    open_store(bench.images).put("a/b.png", image_bytes(9))
    open_store(bench.images).delete(["c.png"])
    save_model(bench.model, seed=1)
    mask = join_uri(bench.masks, "a/b.png.png")
    today = said(capsys, mask, "--model", bench.model)["today"]
    assert "the image has changed" in today
    assert "model or settings differ" in today
    assert said(capsys, join_uri(bench.masks, "c.png.png"))["today"] == "the image is gone"
    open_store(bench.masks).put("c.png.png", encode_image(make_pair(0)[1]))
    lines = said(capsys, join_uri(bench.masks, "c.png.png"))
    assert lines["mask"].endswith("not the one that was recorded")
    assert "--verify makes it again" in lines["today"]
    open_store(bench.masks).delete(["c.png.png"])
    assert "is missing" in said(capsys, "c.png", "--output", bench.masks)["mask"]


def test_the_run_is_that_of_the_mask_and_not_the_last_one(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    first = bench.summary["run"]
    open_store(bench.images).put("c.png", image_bytes(9))
    bench.run(tile=64)
    assert said(capsys, "a/b.png", "--output", bench.masks)["run"].startswith(f"{first}, number 1")
    assert said(capsys, "c.png", "--output", bench.masks)["run"].startswith(f"{bench.summary['run']}, number 2")


def test_a_run_that_adds_an_overlay_has_not_made_the_mask(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    first = bench.summary["run"]
    bench.run(write="mask,overlay", tile=64)
    line = said(capsys, "c.png", "--output", bench.masks)["run"]
    assert line.startswith(f"{first}, number 1, recorded 20")
    assert line.endswith("by number 2")


def test_a_run_that_fails_on_an_image_has_not_made_the_mask_that_is_there(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    first = bench.summary["run"]
    open_store(bench.images).put("c.png", b"no image")
    bench.run()
    bench.run(retry_failed=True)
    line = said(capsys, "c.png", "--output", bench.masks)["run"]
    assert line.startswith(f"{first}, number 1, recorded 20")
    assert line.endswith("by number 3")


def test_an_image_that_failed_has_no_mask_that_could_be_the_same(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("a/b.png", "new.png"):
        open_store(bench.images).put(key, b"no image")
    bench.run(tile=64)
    for key in ("a/b.png", "new.png"):
        today = said(capsys, key, "--output", bench.masks)["today"]
        assert today == "there is no mask of this image, which failed: --retry-failed tries it again"


def test_a_mask_alone_says_what_it_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    bench.run()
    (tmp_path / "elsewhere").mkdir()
    alone = shutil.copy(tmp_path / "masks/a.png.png", tmp_path / "elsewhere/mask.png")
    lines = said(capsys, str(alone))
    assert bench.summary["fingerprint"] in lines["settings"]
    assert bench.summary["model_digest"] in lines["model"]
    assert lines["today"].startswith("unknown")


def test_masks_as_tiff_are_explained_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    bench.run(mask_format="tiff")
    lines = said(capsys, join_uri(bench.masks, "a.png.tif"), "--model", bench.model)
    assert (lines["classes"], lines["today"]) == ("0=ground,255=box", "the same would be made")
    assert said(capsys, "a.png", "--output", bench.masks, "--model", bench.model) == lines


def test_what_is_none_of_ours_is_refused_in_one_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(bench.masks)
    store.put("foreign.png", encode_image(make_pair(0)[1]))
    store.put("text.png.png", b"no image")
    given = [[join_uri(bench.masks, name)] for name in ("foreign.png", "text.png.png", "nowhere.png.png")]
    given += [[join_uri(bench.images, "a/b.png")], ["nowhere.png", "--output", bench.masks]]
    for flags in given:
        assert main(["explain", *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert flags[0] in error


def test_a_bucket_or_a_folder_that_is_not_there_is_refused_in_one_line(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = bench.masks.replace("bucket-", "nobucket-").replace("masks", "nowhere")
    bucket = "/".join(bench.masks.split("/")[:3]) if bench.masks.startswith("s3://") else ""
    for flags in (["a/b.png", "--output", nowhere], [f"{nowhere}/a/b.png.png"], ["--mask", bucket], ["--mask", ""]):
        assert main(["explain", *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith(("error: --output", "error: --mask"))
        assert error.count("\n") == 1


def test_two_runs_of_the_same_settings_write_the_same_bytes(bench: Bench) -> None:
    before = bench.all_masks()
    bench.run(tile=64, force=True)
    assert bench.all_masks() == before


def test_metadata_on_s3_is_ascii_and_short(bucket: str) -> None:
    bench = Bench(bucket)
    save_model(bench.model)
    model = Model.load(bench.model)
    names = ("Straße" * 40, "b" * 500)
    labels = [replace(label, name=name) for label, name in zip(model.labels.labels, names, strict=True)]
    replace(model, labels=replace(model.labels, labels=tuple(labels))).save(bench.model)
    fill(bench.images, ["a.png"])
    assert bench.statuses() == {"a.png": "done"}
    store = open_store(bench.masks)
    metadata = store.metadata("a.png.png")  # type: ignore[attr-defined]
    assert metadata.keys() == {"fingerprint", "model-digest", "image-etag", "run"}
