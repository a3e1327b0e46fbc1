"""Satellite tiles of four bands, by rasterio's default profile, through all jobs: what shows in one band is learnt from
it, and masks lie where their images do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.jobs.bench import Bench, fill, save_model
from unet.command_line import run
from unet.data.image import encode_image
from unet.data.labels import read_labels
from unet.data.mask import decode_mask
from unet.data.settings import SetSettings
from unet.evaluate.job import evaluate
from unet.evaluate.settings import EvaluateSettings
from unet.model.artifact import Model
from unet.model.onnx import TOLERANCE, export, max_difference
from unet.model.settings import ExportSettings
from unet.segment.job import segment
from unet.segment.settings import SegmentSettings
from unet.storage import store
from unet.storage.objects import join_uri
from unet.train.job import train
from unet.train.settings import TrainSettings

rasterio = pytest.importorskip("rasterio")

SIDE, NODATA = 64, 0


def write_tiles(folder: Path, count: int = 24) -> None:
    """Tiles of three bands of noise, and a fourth in which the foreground, a box, is brighter; a corner has no data."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        samples = rng.integers(300, 2000, (4, SIDE, SIDE)).astype(np.uint16)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = rng.integers(4, SIDE - 28, 2)
        mask[top : top + 24, left : left + 24] = 1
        samples[3][mask == 1] += 1500
        samples[:, :6, :9] = NODATA
        profile = rasterio.profiles.DefaultGTiffProfile(
            count=4,
            height=SIDE,
            width=SIDE,
            dtype="uint16",
            crs=rasterio.crs.CRS.from_epsg(32632),
            transform=rasterio.Affine(10, 0, 500_000 + 640 * number, 0, -10, 5_400_000),
            nodata=NODATA,
        )
        with rasterio.open(folder / f"images/{number:02}.tif", "w", **profile) as file:
            file.write(samples)
        (folder / f"masks/{number:02}.png").write_bytes(encode_image(mask))


def flags(folder: Path, *more: str) -> list[str]:
    tiny = "--binary --crop 32 32 --width 8 --depth 2 --norm batch --epochs 2 --steps-per-epoch 60 --batch-size 8"
    return [*f"--data {folder}/set --output {folder}/runs {tiny}".split(), *more]


def share_of_right_pixels(masks: str, folder: Path) -> float:
    """Of the masks of a set's images, which lie where these do, and have no data where these have none."""
    labels, right = read_labels("binary"), []
    for file in sorted((folder / "images").iterdir()):
        data = store.read(join_uri(masks, f"{file.name}.tif"))
        truth = decode_mask((folder / f"masks/{file.stem}.png").read_bytes(), labels)
        with rasterio.MemoryFile(data) as memory, memory.open() as mask, rasterio.open(file) as image:
            assert (mask.crs, mask.transform) == (image.crs, image.transform)
            assert mask.dtypes == ("uint8",)
            assert np.array_equal(mask.dataset_mask() > 0, image.dataset_mask() > 0)
            there, written = mask.dataset_mask() > 0, mask.read(1)
            assert {mask.colormap(1)[label.value][:3] for label in labels.classes} == {
                label.color for label in labels.classes
            }
        values = np.array([label.value for label in labels.classes])
        right.append((written == values[truth])[there].mean())
    return float(np.mean(right))


@pytest.mark.usefixtures("one_ray")
def test_what_shows_in_the_fourth_band_alone_is_learnt_from_it_and_laid_over_it(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiles(tmp_path / "set")
    assert run(train, TrainSettings, flags(tmp_path, "--name", "four")) == 0
    assert "band 4" in capsys.readouterr().out
    four = Model.load(str(tmp_path / "runs/four/model"))
    assert four.network.config["channels"] == 4
    assert four.scores["val_miou"] > 0.9

    images, masks = join_uri(bucket, "images"), join_uri(bucket, "masks")
    for file in (tmp_path / "set/images").iterdir():
        store.write(join_uri(images, file.name), file.read_bytes())
    store.write(join_uri(images, "rgb.png"), encode_image(np.zeros((SIDE, SIDE, 3), np.uint8)))
    settings = SegmentSettings(
        input=images, output=masks, model=str(tmp_path / "runs/four/model"), mask_format="tiff", max_failed="1"
    )
    assert segment(settings) == 0
    said = capsys.readouterr().out
    assert "24 done, 1 failed" in said
    assert "drift: no verdict on fewer than 30 images" in said
    (summary,) = (key for key in store.list_files(masks) if key.endswith("summary.json"))
    psi = json.loads(store.read(join_uri(masks, summary)))["drift"]["psi"]
    assert psi.keys() == {"band 1", "band 2", "band 3", "band 4", "classes"}
    assert max(psi.values()) < 0.02  # of the images that were trained on
    assert share_of_right_pixels(masks, tmp_path / "set") > 0.97

    whole = EvaluateSettings(
        model=settings.model,
        output=str(tmp_path / "scores"),
        data=SetSettings(data=str(tmp_path / "set"), binary=True),
        part="all",
    )
    assert evaluate(whole) == 0
    scores = json.loads((tmp_path / "scores/scores.json").read_text())
    assert scores["pixels"] == 24 * (SIDE * SIDE - 6 * 9)
    assert scores["miou"] > 0.9

    written = EvaluateSettings(predictions=masks, output=str(tmp_path / "again"), data=whole.data, part="all")
    assert evaluate(written) == 0
    assert json.loads((tmp_path / "again/scores.json").read_text())["confusion"] == scores["confusion"]

    exported = str(tmp_path / "model.onnx")
    assert export(ExportSettings(model=settings.model, output=exported)) == 0
    assert max_difference(store.read(exported), four.network, torch.rand(2, 4, 33, 47) * 255) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_what_shows_in_the_fourth_band_alone_is_not_learnt_from_the_others(tmp_path: Path) -> None:
    write_tiles(tmp_path / "set")
    assert run(train, TrainSettings, flags(tmp_path, "--name", "three", "--bands", "1", "2", "3")) == 0
    three = Model.load(str(tmp_path / "runs/three/model"))
    assert three.network.config["channels"] == 3
    assert three.scores["val_miou"] < 0.6


@pytest.mark.usefixtures("one_ray")
def test_an_output_holds_masks_of_one_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    for first, second in (("png", "tiff"), ("tiff", "png")):
        output = str(tmp_path / f"{first}-masks")
        base = ["--input", bench.images, "--output", output, "--model", bench.model, "--mask-format"]
        assert run(segment, SegmentSettings, [*base, first]) == 0
        assert run(segment, SegmentSettings, [*base, second]) == 2
        assert f"holds masks in {first}; give another" in capsys.readouterr().err
        assert run(segment, SegmentSettings, [*base, first]) == 0
        assert "1 unchanged" in capsys.readouterr().out
