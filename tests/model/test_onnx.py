"""The ONNX file: it computes what the model does at any size, says what it is, and bad requests are one line."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from unet.command_line import run
from unet.data.channels import Channels
from unet.data.labels import read_labels
from unet.model import onnx as module
from unet.model.artifact import Model
from unet.model.network import UNet
from unet.model.onnx import TOLERANCE, export, max_difference, to_onnx
from unet.model.settings import ExportSettings, Norm, Upsample
from unet.settings import Geometry, RequestError
from unet.storage import store

LABELS = read_labels("camvid")


def make_model(norm: Norm = "batch", upsample: Upsample = "transpose", kind: str = "native") -> Model:
    torch.manual_seed(0)
    network = UNet(classes=len(LABELS.classes), width=8, depth=2, norm=norm, dropout=0.1, upsample=upsample)
    network(torch.randn(2, 3, 16, 16))  # running statistics that are not the initial ones
    return Model(network.eval(), LABELS, Geometry("resize" if kind == "resize" else "native", (32, 48)))


@pytest.fixture
def saved(tmp_path: Path) -> str:
    folder = str(tmp_path / "model")
    make_model().save(folder)
    return folder


@pytest.mark.parametrize(
    ("upsample", "norm"),
    [
        ("transpose", "batch"),
        ("bilinear", "group"),
        *(
            pytest.param(*kind, marks=pytest.mark.slow)
            for kind in (("transpose", "group"), ("transpose", "none"), ("bilinear", "batch"), ("bilinear", "none"))
        ),
    ],
)
def test_logits_are_the_models_at_sizes_it_was_not_exported_at(norm: Norm, upsample: Upsample) -> None:
    model = make_model(norm, upsample)
    data = to_onnx(model)
    for size in ((1, 3, 37, 61), (2, 3, 64, 50), (3, 3, 1, 1)):
        images = torch.randint(0, 256, size).float()
        assert max_difference(data, model.network, images) <= TOLERANCE


def test_the_file_says_what_it_is(saved: str, tmp_path: Path) -> None:
    file = tmp_path / "made" / "model.onnx"
    assert export(ExportSettings(model=saved, output=str(file))) == 0
    made = onnx.load(file)
    onnx.checker.check_model(made, full_check=True)
    assert made.ir_version == onnx.helper.find_min_ir_version_for(made.opset_import) == 9
    assert not any(node.metadata_props for node in made.graph.node)
    metadata = {item.key: json.loads(item.value) for item in made.metadata_props}
    assert metadata["labels"] == LABELS.to_json()
    assert metadata["classes"] == list(LABELS.names)
    assert metadata["geometry"] == {"kind": "native", "size": [32, 48]}
    assert metadata["digest"] == Model.load(saved).digest
    assert "0..255" in metadata["preprocessing"]["image"]
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*made.graph.input, *made.graph.output)
    }
    assert shapes["image"] == ["batch", 3, "height", "width"]
    assert shapes["logits"] == ["batch", len(LABELS.classes), "height", "width"]


def test_a_model_says_what_the_caller_does_to_images() -> None:
    model = make_model(kind="resize")
    model.channels = Channels(windows=((0, 4000),))
    metadata = module.onnx_metadata(model)["preprocessing"]
    assert "resize the image to 32 x 48" in metadata["size"]
    assert metadata["window"] == (0, 4000)


@pytest.mark.slow
def test_a_file_can_be_written_to_s3(saved: str, bucket: str) -> None:
    assert export(ExportSettings(model=saved, output=f"{bucket}/models/a.onnx")) == 0
    data = store.read(f"{bucket}/models/a.onnx")
    assert max_difference(data, Model.load(saved).network, torch.zeros(1, 3, 9, 7)) <= TOLERANCE


def test_a_graph_that_computes_something_else_is_not_written(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="nothing written"):
        export(ExportSettings(model=saved, output=str(tmp_path / "a.onnx")))
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda saved: ["--model", f"{saved}/no", "--output", f"{saved}.onnx"], "is no model folder"),
        (lambda saved: ["--model", saved, "--output", f"{saved}.pt"], "ends in .onnx"),
        (lambda saved: ["--model", saved, "--output", f"{saved}/model.json/a.onnx"], "cannot be written"),
        (lambda saved: ["--model", saved], "--output: name a file that ends in .onnx"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_2(
    arguments: Callable[[str], list[str]], said: str, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(export, ExportSettings, arguments(saved)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_missing_packages_are_named_with_the_remedy(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(RequestError, match=r"no_such_package must be installed: pip install 'unet-ray\[export\]'"):
        export(ExportSettings(model=saved, output="a.onnx"))
