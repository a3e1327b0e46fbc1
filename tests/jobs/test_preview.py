"""The preview of a new model: it counts what comparing two whole runs counts, and changes nothing."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import make_pair
from tests.jobs.bench import NATIVE, Bench, fill, image_bytes, outcomes_of, save_model
from tests.servers.proxy import Proxy
from tests.test_schemas import all_files
from unet.command_line import run
from unet.data.image import encode_image
from unet.data.labels import Label, LabelSet
from unet.data.mask import decode_mask
from unet.data.planes import decode_image
from unet.model.artifact import Model
from unet.model.network import UNet
from unet.segment.comparer import Classes, Comparer
from unet.segment.item import Outcome
from unet.segment.job import _prepare, segment
from unet.segment.model_record import recorded_labels
from unet.segment.preview import _summary, comparison_of
from unet.segment.preview_sample import draw_sample
from unet.segment.run_spec import hash64
from unet.segment.segmenter import Segmenter
from unet.segment.settings import SegmentSettings
from unet.settings import RequestError
from unet.storage.store import open_store

STREET = LabelSet(
    (
        Label(value=7, name="box", color=(255, 0, 0)),
        Label(value=9, name="tree", color=(0, 0, 0)),
        Label(value=200, name="ground", color=(1, 2, 3)),
        Label(value=201, name="void", color=(9, 9, 9), ignore=True),
    )
)
"""Other values, another order, and a class that the model of the bench does not have."""


def network(classes: int, seed: int = 5) -> UNet:
    torch.manual_seed(seed)
    return UNet(classes=classes, width=4, depth=2, norm="batch", dropout=0.0).eval()


def save_street(uri: str) -> None:
    Model(network=network(3), labels=STREET, geometry=NATIVE).save(uri)


def previewed(bench: Bench, **given: Any) -> tuple[dict[str, Any], dict[str, Outcome]]:
    """The summary of a preview and the outcome of each image, in this process."""
    model, spec = _prepare(bench.settings(**{"preview": 100} | given))
    labels = recorded_labels(spec, model)
    sample = draw_sample(spec, labels)
    classes = Classes.joined(model.labels, {item.fingerprint: labels[item.fingerprint] for item in sample.items})
    outcomes = outcomes_of(Segmenter(spec, model, writer=Comparer(spec, classes)), sample.items)
    settled = [*sample.passed_over, *zip(sample.items, outcomes, strict=True)]
    summary = _summary(spec, model, classes, sample, settled)
    return summary, {item.key: outcome for item, outcome in settled}


@pytest.fixture(params=["png", "tiff"])
def mask_format(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Six images that are segmented."""
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, [f"{i}.png" for i in range(6)])
    return bench


def test_of_a_model_against_itself_no_pixel_changes(bench: Bench, mask_format: Any) -> None:
    bench.run(mask_format=mask_format)
    summary, outcomes = previewed(bench, mask_format=mask_format)
    assert (summary["counts"], summary["changed"], summary["pixels"]) == ({"done": 6}, 0, 6 * 40 * 56)
    assert all((found := comparison_of(outcome)) and found.panels is None for outcome in outcomes.values())
    assert (summary["only_before"], summary["only_after"]) == ([], [])
    for name in ("confidence", "unsure"):
        assert summary[f"{name}_before"] == pytest.approx(summary[name], abs=1e-6)


def test_against_another_model_it_counts_what_the_masks_of_two_whole_runs_show(
    bench: Bench, mask_format: Any, tmp_path: Path
) -> None:
    """Of another label set: what changes is what has another name."""
    bench.run(mask_format=mask_format)
    suffix = {"png": "png", "tiff": "tif"}[mask_format]
    old = Model.load(bench.model).labels
    before = {key: open_store(bench.masks).get(f"{key}.{suffix}") for key in (f"{i}.png" for i in range(6))}
    save_street(bench.model)
    summary, outcomes = previewed(bench, mask_format=mask_format)
    other = Bench(str(tmp_path))
    other.masks = f"{tmp_path}/others"
    other.run(mask_format=mask_format)
    names = ["box", "tree", "ground"]
    expected = np.zeros((3, 3), np.int64)
    for key, data in before.items():
        mask = np.array([names.index(name) for name in old.names])[decode_mask(data, old)]
        new = decode_mask(open_store(other.masks).get(f"{key}.{suffix}"), STREET)
        np.add.at(expected, (mask, new), 1)
        found = comparison_of(outcomes[key])
        assert found is not None
        assert found.changed == (mask != new).sum()
    assert summary["classes"] == names
    assert summary["matrix"] == expected.tolist()
    assert summary["changed"] == expected.sum() - np.trace(expected) > 0
    assert summary["share"] == summary["changed"] / (6 * 40 * 56)
    assert (summary["only_before"], summary["only_after"]) == ([], ["tree"])


def test_confidence_after_is_that_of_the_new_model(bench: Bench) -> None:
    bench.run()
    save_model(bench.model, seed=1)
    summary, outcomes = previewed(bench)
    bench.run(write="mask,confidence")
    images = [open_store(bench.masks).get(f"_segment/confidence/{key}.png") for key in outcomes]
    levels = np.stack([decode_image(data)[..., 0] for data in images])
    assert summary["confidence"] == pytest.approx(levels.mean() / 255)
    assert summary["unsure"] == pytest.approx((levels < 127.5).mean())


def test_the_sample_is_the_same_each_time_and_grows_by_what_comes_next(bench: Bench) -> None:
    fill(bench.images, [f"{i:03}.png" for i in range(14)])
    bench.run()
    keys = [list(previewed(bench, preview=most)[1]) for most in (3, 3, 9)]
    assert keys[0] == keys[1] == keys[2][:3]
    everything = [f"{i}.png" for i in range(6)] + [f"{i:03}.png" for i in range(14)]
    assert keys[2] == sorted(everything, key=hash64)[:9]
    assert set(previewed(bench, include=("01*",))[1]) == {f"01{i}.png" for i in range(4)}


def test_a_mask_that_is_missing_or_altered_is_a_row_with_its_reason(bench: Bench) -> None:
    bench.run()
    store = open_store(bench.masks)
    store.delete(["0.png.png"])
    store.put("1.png.png", encode_image(np.zeros((40, 56), np.uint8)))
    summary, outcomes = previewed(bench)
    assert summary["counts"] == {"done": 4, "mask_altered": 1, "mask_missing": 1}
    assert (outcomes["0.png"].status, outcomes["1.png"].status) == ("mask_missing", "mask_altered")
    assert summary["pixels"] == 4 * 40 * 56


def test_images_that_are_not_as_recorded_are_passed_over_and_the_next_ones_taken(bench: Bench) -> None:
    bench.run()
    first = list(previewed(bench, preview=2)[1])
    open_store(bench.images).delete([first[0]])
    open_store(bench.images).put(first[1], image_bytes(99))
    summary, outcomes = previewed(bench, preview=2)
    assert [outcomes[key].status for key in first] == ["vanished", "changed"]
    assert summary["counts"] == {"changed": 1, "done": 2, "vanished": 1}
    assert summary["recorded"] == 6


def test_an_image_that_may_not_be_read_is_a_row(on_s3: Bench, proxy: Proxy) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, ["a.png", "b.png", "c.png"])
    on_s3.run()
    proxy.add(path="*/images/b.png*", action="denied")
    summary, outcomes = previewed(on_s3)
    assert summary["counts"] == {"done": 2, "failed": 1}
    assert outcomes["b.png"].fault == "denied"


def test_pixels_without_data_are_not_compared(bench: Bench) -> None:
    """A black rectangle of the nodata value 0: without an ignored label the mask holds a class there."""
    model = Model.load(bench.model)
    replace(model, channels=replace(model.channels, nodata=0.0)).save(bench.model)
    image = np.maximum(make_pair(0)[0], 1)
    image[:10, :20] = 0
    open_store(bench.images).put("hole.png", encode_image(image))
    bench.run()
    found = comparison_of(previewed(bench)[1]["hole.png"])
    assert found is not None
    assert found.pixels == 40 * 56 - 10 * 20


def test_a_mask_of_a_model_that_is_not_recorded_is_not_guessed_at(bench: Bench) -> None:
    bench.run()
    store = open_store(bench.masks)
    store.delete([key for page in store.list() for key in (item.key for item in page) if "_segment/models/" in key])
    assert previewed(bench)[0]["counts"] == {"done": 6}  # the model itself is at hand
    save_model(bench.model, seed=1)
    with pytest.raises(RequestError, match="run the job once with the model that made its mask"):
        previewed(bench)


@pytest.mark.parametrize(
    ("content", "said"), [(b'{"format": 9}', "was written by a newer version"), (b"{", "is damaged; delete it")]
)
def test_a_record_of_a_model_that_cannot_be_read_is_named(bench: Bench, content: bytes, said: str) -> None:
    bench.run()
    open_store(bench.masks).put("_segment/models/0123.json", content)
    with pytest.raises(RequestError, match=f"models/0123.json: {said}"):
        previewed(bench)


def test_a_record_that_a_newer_version_has_written_is_left_alone(bench: Bench) -> None:
    bench.run()
    store, newer = open_store(bench.masks), b'{"format": 9}'
    (key,) = [item.key for page in store.list() for item in page if "_segment/models/" in item.key]
    store.put(key, newer)
    bench.run()
    assert store.get(key) == newer


def test_classes_of_two_models_are_one_set_by_name_in_colours_apart() -> None:
    old = LabelSet(
        (
            Label(value=3, name="road", color=(255, 0, 0)),
            Label(value=4, name="ground", color=(4, 4, 4)),
            Label(value=5, name="sky", color=(255, 0, 0 + 1)),
        )
    )
    classes = Classes.joined(STREET, {"old": old})
    assert classes.labels.names == ("box", "tree", "ground", "road", "sky")
    assert len({label.color for label in classes.labels.classes}) == 5
    assert classes.labels.classes[2].color == (1, 2, 3)
    assert classes.table("old")[[0, 1, 2, 255]].tolist() == [3, 2, 4, 255]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--preview", "5"], "run the job without --preview first"),
        (["--preview", "0"], "--preview 0 must be at least 1"),
        (["--preview", "5", "--prune", "--force"], "leave --force and --prune out"),
        (["--preview", "5", "--write", "mask,overlay"], "leave --write out"),
    ],
)
def test_a_preview_that_cannot_be_is_one_line(
    bench: Bench, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--input", bench.images, "--output", bench.masks, "--model", bench.model]
    assert run(segment, SegmentSettings, [*places, *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path(bench.masks).exists()


def test_a_whole_preview_leaves_its_page_and_touches_nothing_else(
    bucket: str, one_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(bucket)
    save_model(bench.model)
    fill(bench.images, [f"{i}.png" for i in range(4)])
    assert segment(bench.settings()) == 0
    save_street(bench.model)
    before = all_files(bench.masks)
    open_store(bench.images).put("new.png", image_bytes(9))
    assert segment(bench.settings(preview=100)) == 0
    after = all_files(bench.masks)
    left = {key: after.pop(key) for key in sorted(after) if key.startswith("_segment/previews/")}
    assert after == before
    names = ["index.html", "preview.parquet", "settings.yaml", "summary.json"]
    assert [key.rsplit("/")[-1] for key in sorted(left)] == names
    page, rows, _, summary = (left[key] for key in sorted(left))
    said = json.loads(summary)
    table = pq.read_table(io.BytesIO(rows))
    assert table["key"].to_pylist() == [f"{i}.png" for i in range(4)]
    assert sum(table["changed"].to_pylist()) == said["changed"] > 0
    assert said["hours_for_all"] == pytest.approx(4 / said["images_per_second"] / 3600)
    assert b"Images that change most" in page
    assert f"{said['share']:.2%} of the pixels change in 4 images" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_rows_and_too_many_are_exit_3(
    bench: Bench, one_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run()
    save_model(bench.model, seed=1)
    limits = bench.settings(preview=100, max_pixels=100)
    assert segment(limits) == 3
    assert "6 of 6 objects were lost" in capsys.readouterr().err
    assert segment(replace(limits, max_failed="6")) == 0
