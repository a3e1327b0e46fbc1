"""The loop of a worker, alone in this process: what a death costs, and what validation counts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.train.v2.api.exceptions import WorkerGroupError
from safetensors.torch import save

from unet.data.image import Array
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.data.settings import AugmentSettings, DataSettings
from unet.model.artifact import Model
from unet.model.encoder import ResNet
from unet.model.predictor import Predictor
from unet.model.settings import ModelSettings
from unet.settings import Geometry, RequestError
from unet.train.checkpoint import Checkpoints
from unet.train.examples import Batch, make_batch
from unet.train.faults import Superseded, fault_of
from unet.train.loop import TrainingLoop
from unet.train.resume import identity_of
from unet.train.run import RemainingRequests, TrainingRun
from unet.train.settings import FitSettings, TrainSettings
from unet.train.validation import validate


class ValidationError(Exception):
    """What the batches of a validation do to a loop."""


@pytest.fixture
def run(boxes: Path, tmp_path: Path) -> TrainingRun:
    """Two epochs of three steps."""
    data = DataSettings(data=str(boxes), classes="camvid")
    settings = TrainSettings(
        output=str(tmp_path),
        size=(40, 56),
        checkpoint_every=2,
        data=data,
        model=ModelSettings(width=8, depth=2),
        fit=FitSettings(epochs=2, batch_size=4, precision="fp32"),
    )
    labels = read_labels(str(boxes / "classes.csv"))
    return TrainingRun(settings, str(tmp_path / "run"), find_labelled_set(data), labels, class_weights=None)


def batches(run: TrainingRun, loop: TrainingLoop, *, validations: bool = True) -> Iterator[Batch]:
    for request in RemainingRequests(run, len(loop.entries), loop.learner.step, rank=0, world=1):
        if not request.samples and not validations:
            raise ValidationError
        yield make_batch(request, run.batch_spec)


def test_a_death_in_validation_loses_no_step(run: TrainingRun) -> None:
    with Checkpoints(run.folder) as checkpoints:
        loop = TrainingLoop(run, checkpoints, None, torch.device("cpu"))
        with pytest.raises(ValidationError):
            loop.train(batches(run, loop, validations=False))
    with Checkpoints(run.folder) as checkpoints:
        loop = TrainingLoop(run, checkpoints, checkpoints.latest(), torch.device("cpu"))
        assert (loop.learner.step, len(loop.losses), loop.entries) == (3, 3, [])
        loop.train(batches(run, loop))
    assert [entry["step"] for entry in loop.entries] == [3, 6]


def test_of_the_checkpoints_before_and_after_a_validation_the_later_is_left(run: TrainingRun) -> None:
    with Checkpoints(run.folder) as checkpoints:
        loop = TrainingLoop(run, checkpoints, None, torch.device("cpu"))
        loop.train(batches(run, loop))
    names = sorted(path.name for path in Path(run.folder, "checkpoints").iterdir())
    assert [int(name[5:14]) for name in names] == [4, 6]
    assert len(checkpoints.load(names[-1])["entries"]) == 2


def test_a_run_ends_at_its_next_checkpoint_where_another_command_has_begun_to_train(run: TrainingRun) -> None:
    """Neither writes over what the other has written since, nor goes on from it."""
    identity = Path(run.folder, "identity.json")
    identity.parent.mkdir()
    identity.write_text(json.dumps(identity_of(run)))
    with Checkpoints(run.folder, run.driver) as checkpoints:
        loop = TrainingLoop(run, checkpoints, None, torch.device("cpu"))
        loop.train(batches(run, loop))
    left = sorted(path.name for path in identity.parent.rglob("*"))
    identity.write_text(json.dumps(identity_of(replace(run, driver="another"))))
    with Checkpoints(run.folder, run.driver) as checkpoints:
        loop = TrainingLoop(run, checkpoints, None, torch.device("cpu"))
        with pytest.raises(Superseded, match="another command has begun to train here"):
            loop.train(batches(run, loop))
    assert sorted(path.name for path in identity.parent.rglob("*")) == left
    assert isinstance(fault_of(WorkerGroupError("", {0: Superseded("a")})), Superseded)


@pytest.mark.parametrize(
    ("epochs", "given", "mixed"), [(49, None, 0.0), (50, None, 0.5), (50, 0.0, 0.0), (2, 1.0, 1.0)]
)
def test_classes_are_mixed_where_each_image_is_shown_often(
    run: TrainingRun, epochs: int, given: float | None, mixed: float
) -> None:
    fit = replace(run.settings.fit, epochs=epochs)
    often = replace(run, settings=replace(run.settings, fit=fit, augment=AugmentSettings(class_mix=given)))
    assert often.batch_spec.augment.class_mix == mixed


class SmallMemory(Predictor):
    """A device with room for one image of 40 x 56 pixels, and none that is larger."""

    def logits_in_bands(self, images: Sequence[Array]) -> Iterator[Iterator[torch.Tensor]]:
        if len(images) > 1 or images[0].shape[0] > 40:
            torch.empty(1 << 50)  # what a CPU says is a plain RuntimeError
        return super().logits_in_bands(images)


def test_validation_goes_on_in_halves_and_says_what_does_not_fit(run: TrainingRun) -> None:
    loop = TrainingLoop(run, Checkpoints(run.folder), None, torch.device("cpu"))
    model = Model(loop.learner.average, run.labels, run.settings.geometry)
    own = [make_batch(request, run.batch_spec) for request in run.validation_requests(0, 1)]
    whole, halves = (validate(kind(model), loop.learner.sums_of, own) for kind in (Predictor, SmallMemory))
    assert (whole[1].counts == halves[1].counts).all()
    assert all(torch.equal(a, b) for a, b in zip(whole[0], halves[0], strict=True))
    assert whole.statistics.to_json() == halves.statistics.to_json()
    maps = [Predictor(model).predict_batch(list(batch.images), confidence=True) for batch in own]
    confidences = [found.confidence.mean() / 255 for part in maps for found in part if found.confidence is not None]
    assert whole.statistics.confidence == pytest.approx(sum(confidences), abs=0.01)
    assert whole.statistics.masks == len(run.labelled.val)
    hidden = np.zeros((40, 56), bool)
    hidden[:, 20:] = True
    scored = validate(Predictor(model), loop.learner.sums_of, [replace(own[0], holes=(hidden, *own[0].holes[1:]))])
    masks = [found.mask for found in maps[0]]
    shares = [np.bincount(mask.reshape(-1), minlength=2) / mask.size for mask in (masks[0][:, :20], *masks[1:])]
    assert scored.statistics.class_shares == pytest.approx(sum(shares))
    large = make_batch(run.validation_requests(0, 1)[0], replace(run.batch_spec, geometry=Geometry("resize", (48, 56))))
    with pytest.raises(RequestError, match=r"an image of 48 x 56 pixels does not fit in memory.*--size or --width"):
        validate(SmallMemory(model), loop.learner.sums_of, [large])


def test_an_encoder_begins_from_its_weights_and_a_run_that_goes_on_needs_them_no_more(
    run: TrainingRun, tmp_path: Path
) -> None:
    weights, file = ResNet("resnet18", 3).state_dict(), tmp_path / "weights.safetensors"
    file.write_bytes(save(weights))
    fit = replace(run.settings.fit, encoder_weights=str(file), batch_size=12, lr=1e-9, ema=0.0)
    run = replace(run, settings=replace(run.settings, model=ModelSettings(encoder="resnet18", width=8), fit=fit))
    with Checkpoints(run.folder) as checkpoints:
        loop = TrainingLoop(run, checkpoints, None, torch.device("cpu"))
        loop.train(batches(run, loop))
    encoder = loop.learner.network.encoder
    assert encoder is not None
    for name, parameter in encoder.named_parameters():
        assert torch.allclose(parameter, weights[name], atol=1e-6), name
    file.unlink()
    with Checkpoints(run.folder) as checkpoints:
        again = TrainingLoop(run, checkpoints, checkpoints.latest(), torch.device("cpu"))
    assert len(again.entries) == 2
