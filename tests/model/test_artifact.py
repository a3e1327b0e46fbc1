"""The model folder: what is saved is what is loaded, and nothing else is."""

import hashlib
import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from unet.data.channels import Channels
from unet.data.drift import BINS, ImageStatistics
from unet.data.labels import read_labels
from unet.model.artifact import Model
from unet.model.network import UNet
from unet.model.predictor import Predictor
from unet.settings import Geometry, RequestError
from unet.storage import store
from unet.storage.faults import Denied
from unet.storage.local import LocalStore
from unet.storage.objects import join_uri


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Model, str]:
    torch.manual_seed(0)
    network = UNet(classes=11, width=8, depth=2, norm="batch", dropout=0.0).eval()
    model = Model(network, read_labels("camvid"), Geometry("resize", (32, 48)), {"lr": 0.1}, {"val_miou": 0.5})
    model.save(str(tmp_path / "model"))
    return model, str(tmp_path / "model")


def test_a_loaded_model_predicts_what_the_saved_one_did(saved: tuple[Model, str]) -> None:
    model, folder = saved
    loaded = Model.load(folder, "--model")
    image = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy()
    assert (Predictor(loaded).predict(image) == Predictor(model).predict(image)).all()
    assert (loaded.labels, loaded.geometry, loaded.training, loaded.scores, loaded.digest) == (
        model.labels,
        model.geometry,
        model.training,
        model.scores,
        model.digest,
    )


def test_a_mask_has_the_size_of_its_image_in_both_geometries(saved: tuple[Model, str]) -> None:
    model, _ = saved
    image = torch.randint(0, 256, (37, 61, 3), dtype=torch.uint8).numpy()
    for kind in ("resize", "native"):
        model.geometry = Geometry(kind, (32, 48))
        assert Predictor(model).predict(image).shape == (37, 61)


def test_a_window_is_kept_and_its_absence_leaves_the_description_as_it_was(saved: tuple[Model, str]) -> None:
    model, folder = saved
    description = json.loads((Path(folder) / "model.json").read_text())
    assert (description["format"], description["preprocessing"]) == (1, {"version": 1, "range": [-1, 1]})
    assert Model.load(folder).channels == Channels()
    model.channels = Channels(windows=((212, 3890),))
    model.save(folder)
    assert Model.load(folder).channels == model.channels


def test_what_the_training_images_were_like_is_kept_and_is_no_part_of_what_the_model_is(
    saved: tuple[Model, str],
) -> None:
    model, folder = saved
    before, format_before = (
        Predictor(model).fingerprint,
        json.loads((Path(folder) / "model.json").read_text())["format"],
    )
    assert Model.load(folder).reference is None
    model.reference = ImageStatistics(np.full((3, BINS), 2.5), np.arange(11) / 8, images=80, masks=10, confidence=7.5)
    model.save(folder)
    loaded = Model.load(folder)
    assert loaded.reference is not None
    assert loaded.reference.to_json() == model.reference.to_json()
    assert Predictor(loaded).fingerprint == before
    assert json.loads((Path(folder) / "model.json").read_text())["format"] == format_before


def test_a_reference_of_another_model_is_refused(saved: tuple[Model, str]) -> None:
    model, folder = saved
    model.reference = ImageStatistics.empty(channels=4, classes=11)
    model.save(folder)
    with pytest.raises(RequestError, match="cannot be read as a model folder: its reference is not of 3 channels"):
        Model.load(folder, "--model")


def test_weights_that_do_not_match_their_description_are_refused(saved: tuple[Model, str]) -> None:
    file = Path(saved[1]) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RequestError, match=r"does not match model\.json"):
        Model.load(saved[1], "--model")


def test_a_newer_format_is_refused(saved: tuple[Model, str]) -> None:
    file = Path(saved[1]) / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(RequestError, match="newer version"):
        Model.load(saved[1], "--model")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--init-from .* is no model folder"):
        Model.load(str(tmp_path), "--init-from")


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_promise_27_a_pickle_where_a_model_should_be_is_refused_unread(saved: tuple[Model, str]) -> None:
    for name in ("model.safetensors", "model.json"):
        (Path(saved[1]) / name).write_bytes(pickle.dumps(_Bomb()))
        with pytest.raises(RequestError):
            Model.load(saved[1], "--model")


class _Killed(BaseException):
    pass


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "place") if request.param == "folder" else f"{request.getfixturevalue('bucket')}/place"


def test_promise_28_a_model_that_is_saved_over_another_is_one_of_the_two_at_every_moment(
    saved: tuple[Model, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = saved
    model.save(place)
    first, scores = model.digest, []
    put = store.write
    for writes in range(4):
        left = iter(range(writes))

        def kill_after(uri: str, data: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise _Killed
            put(uri, data)

        with torch.no_grad():
            next(model.network.parameters()).add_(1)
        model.scores["val_miou"] = float(writes)
        with monkeypatch.context() as patch, suppress(_Killed):
            patch.setattr(store, "write", kill_after)
            model.save(place)
        scores.append(Model.load(place).scores["val_miou"])
    assert scores[0] == 0.5
    assert scores[-1] == 3.0
    assert model.digest != first
    assert store.list_files(place) == ["model.json", "model.safetensors"]  # what the killed ones left is gone too
    assert Model.load(place).digest == hashlib.sha256(store.read(join_uri(place, "model.safetensors"))).hexdigest()


def test_without_the_right_to_delete_no_second_copy_of_the_weights_is_left(
    saved: tuple[Model, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved

    def denied(self: LocalStore, keys: Iterable[str]) -> None:
        raise Denied(folder, "no")

    monkeypatch.setattr(LocalStore, "delete", denied)
    model.save(folder)
    assert Model.load(folder).digest == model.digest
    sizes = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
    assert [size for name, size in sizes.items() if name.startswith("model-")] == [0]


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(
    saved: tuple[Model, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved
    read = store.read
    replaced: list[str] = []

    def replace_first(uri: str) -> bytes:
        if uri.endswith("model.safetensors") and not replaced:
            replaced.append(uri)
            with torch.no_grad():
                next(model.network.parameters()).add_(1)
            model.save(folder)
        return read(uri)

    monkeypatch.setattr(store, "read", replace_first)
    assert Model.load(folder).digest == model.digest
    assert replaced
