"""int8: masks are nearly those of floats, depend on the image alone, and a model is prepared for it or refused."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import make_pair
from tests.jobs.bench import without_ray
from tests.model.test_predictor import Kind, in_channels, random_model, textured
from unet.command_line import run
from unet.data.image import Array
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import Label, LabelSet
from unet.data.settings import SetSettings
from unet.evaluate.job import Evaluation, evaluate
from unet.evaluate.settings import EvaluateSettings
from unet.model import calibration, int8
from unet.model.artifact import Model
from unet.model.int8 import FORMAT, Scale, calibrate, dequantise, quantise
from unet.model.metrics import ConfusionMatrix
from unet.model.network import UNet, normalise
from unet.model.onnx import export
from unet.model.predictor import Predictor
from unet.model.settings import ExportSettings, Norm, Upsample
from unet.segment.job import segment
from unet.segment.settings import SegmentSettings
from unet.settings import Geometry
from unet.storage.store import open_store
from unet.train.learner import Learner
from unet.train.settings import FitSettings

LABELS = LabelSet((Label(value=0, name="ground", color=(0, 0, 0)), Label(value=1, name="box", color=(255, 0, 0))))

needs_vnni = pytest.mark.skipif(
    not any(torch.cpu.get_capabilities().get(name) for name in int8.VNNI), reason="this processor has no VNNI"
)


def prepared(model: Model) -> Model:
    """The same model with the ranges that four images have in it."""
    images = [in_channels(seed, 64, 96, model.network.config["channels"]) for seed in range(4)]
    ranges = calibrate(model.network, (normalise(torch.from_numpy(image)[None]) for image in images))
    model.int8 = {"format": FORMAT, "ranges": ranges}
    return model


@pytest.fixture(scope="module")
def boxes_network() -> UNet:
    """Trained for moments to tell boxes from their ground."""
    torch.manual_seed(0)
    network = UNet(classes=2, width=8, depth=2, norm="batch", dropout=0.0)
    learner = Learner(network, FitSettings(ema=0.5, lr=0.01), total_steps=30)
    for step in range(30):
        pairs = [make_pair(seed) for seed in range(4 * step, 4 * step + 4)]
        images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        learner.train_step(images, masks)
    return learner.average.eval()


@pytest.fixture
def model(boxes_network: UNet, tmp_path: Path) -> str:
    Model(network=boxes_network, labels=LABELS, geometry=Geometry("native", (32, 32))).save(str(tmp_path / "model"))
    return str(tmp_path / "model")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_integers_stand_for_what_was_quantised_within_half_a_step() -> None:
    scale = Scale.of([(-3.0, 1.0), (0.0, 6.0)])
    x = torch.linspace(-3, 6, 1000).view(1, 1, 10, 100)
    integers = quantise(x, scale.step, scale.zero)
    assert integers.dtype == torch.uint8
    assert (dequantise(integers, scale.step, scale.zero) - x).abs().max() <= scale.step / 2 * 1.001
    assert dequantise(torch.tensor([scale.zero]), scale.step, scale.zero) == 0


@needs_vnni
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_int8_agrees_with_fp32_where_fp32_is_certain(norm: Norm, upsample: Upsample) -> None:
    model, image = prepared(random_model(norm=norm, upsample=upsample)), textured(5, 61, 83)
    fp32 = Predictor(model, precision="fp32").predict_batch([image], confidence=True)[0]
    ours = Predictor(model, precision="int8").predict_batch([image], confidence=True)[0]
    assert fp32.confidence is not None
    assert ours.confidence is not None
    certain = fp32.confidence > np.median(fp32.confidence)
    assert (ours.mask == fp32.mask)[certain].mean() > 0.97
    assert np.abs(ours.confidence.astype(float) - fp32.confidence)[ours.mask == fp32.mask].mean() < 8


@needs_vnni
@pytest.mark.parametrize(("kind", "channels", "tile"), [("native", 3, 1024), ("resize", 5, 1024), ("native", 1, 64)])
@pytest.mark.parametrize(("norm", "upsample"), [("batch", "transpose"), ("group", "bilinear")])
def test_masks_in_int8_do_not_depend_on_batch_order_or_threads(
    kind: Kind, channels: int, tile: int, norm: Norm, upsample: Upsample, threads: None
) -> None:
    model = prepared(random_model(kind, channels=channels, norm=norm, upsample=upsample))
    predictor = Predictor(model, precision="int8", tile=tile, tta=channels == 5)
    images = [in_channels(seed, 90 + seed % 3, 113, channels) for seed in range(4)]
    torch.set_num_threads(2)
    together: list[Array] = [prediction.mask for prediction in predictor.predict_batch(images)]
    for count in (1, 3):
        torch.set_num_threads(count)
        alone = [predictor.predict(image) for image in reversed(images)]
        assert all((a == b).all() for a, b in zip(together, reversed(alone), strict=True))
    assert min(len(np.unique(mask)) for mask in together) > 1


@needs_vnni
def test_int8_and_its_ranges_are_part_of_the_fingerprint_and_no_part_of_others() -> None:
    model = random_model()
    floats = json.dumps(Predictor(model).fingerprint)
    first = json.dumps(Predictor(prepared(model), precision="int8").fingerprint)
    assert json.dumps(Predictor(model).fingerprint) == floats
    model.int8["ranges"]["head"] = (0.0, 1.0)
    assert len({floats, first, json.dumps(Predictor(model, precision="int8").fingerprint)}) == 3


@needs_vnni
def test_a_model_is_prepared_with_its_set_and_then_segments_and_scores_in_int8(
    model: str, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    before = Model.load(model)
    assert run(export, ExportSettings, ["--int8", "--model", model, "--data", str(boxes)]) == 0
    assert "5 images" in capsys.readouterr().out
    loaded = Model.load(model)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert loaded.digest == before.digest
    scores = loaded.int8["scores"]
    assert scores["miou"] > 0.7
    assert abs(scores["miou"] - scores["miou_before"]) < 0.005
    assert 0.985 < scores["agreement"] <= 1

    images, flags = str(boxes / "val" / "images"), ["--model", model, "--precision", "int8"]
    with without_ray():
        assert run(segment, SegmentSettings, [*flags, "--input", images, "--output", str(tmp_path / "masks")]) == 0
    masks, predictor = open_store(str(tmp_path / "masks")), Predictor(loaded, precision="int8")
    for seed in range(100, 105):
        mask = predictor.predict(make_pair(seed)[0])
        assert (np.asarray(Image.open(io.BytesIO(masks.get(f"{seed}.png.png")))) == mask).all()
    settings = EvaluateSettings(model=model, precision="int8", output="-", data=SetSettings(data=str(boxes)))
    scorer = Evaluation(settings, loaded.labels, loaded, {}, loaded.channels).scorer(gpu=False)
    scored = scorer(find_labelled_set(settings.data).val)
    assert ConfusionMatrix(scored.counts).mean_iou == scores["miou"]


@needs_vnni
def test_a_model_that_loses_too_much_stays_as_it_is(
    model: str, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "MAX_LOSS", -1.0)
    before = (tmp_path / "model" / "model.json").read_bytes()
    assert run(export, ExportSettings, ["--int8", "--model", model, "--data", str(boxes)]) == 2
    assert "nothing is written; keep --precision auto" in capsys.readouterr().err
    assert (tmp_path / "model" / "model.json").read_bytes() == before


def test_a_description_of_another_model_is_left_alone(model: str, tmp_path: Path) -> None:
    loaded = Model.load(model)
    Model(random_model().network, random_model().labels, loaded.geometry).save(model)
    before = (tmp_path / "model" / "model.json").read_bytes()
    with pytest.raises(ValueError, match="was replaced meanwhile"):
        loaded.save_int8(model)
    assert (tmp_path / "model" / "model.json").read_bytes() == before


def test_a_processor_without_vnni_is_said_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(int8, "VNNI", ())
    assert run(export, ExportSettings, ["--int8", "--model", "no", "--data", "no"]) == 2
    assert "int8 needs a processor with VNNI" in capsys.readouterr().err


EXPORT, SEGMENT, EVALUATE = (export, ExportSettings), (segment, SegmentSettings), (evaluate, EvaluateSettings)


@pytest.mark.parametrize(
    ("job", "flags", "said"),
    [
        (EXPORT, ["--int8"], "--int8: name the model's labelled set with --data"),
        (EXPORT, ["--int8", "--data", "BOXES", "--output", "a.onnx"], "--int8 writes into the folder of --model"),
        (EXPORT, ["--data", "BOXES", "--output", "a.onnx"], "--data goes with --int8"),
        (EXPORT, [], "--output: name a file that ends in .onnx; or give --int8"),
        (SEGMENT, ["--input", "BOXES", "--output", "OUT", "--precision", "int8"], "MODEL: is not prepared"),
        (
            SEGMENT,
            ["--input", "BOXES", "--output", "OUT", "--precision", "int8", "--gpu"],
            "--precision int8 is for CPUs",
        ),
        (EVALUATE, ["--data", "BOXES", "--output", "OUT", "--precision", "int8"], "run: unet export --int8"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_2(
    job: tuple[Callable[..., int], type],
    flags: list[str],
    said: str,
    model: str,
    boxes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"BOXES": str(boxes), "OUT": str(tmp_path / "out"), "MODEL": f"--model {model}"}
    assert run(*job, ["--model", model, *(places.get(flag, flag) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert said.replace("MODEL", places["MODEL"]) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
