"""Fitting: it learns, it goes on exactly where it stopped, and accumulation changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import make_pair
from unet.data.labels import IGNORE, read_labels
from unet.data.settings import DataSettings
from unet.model.artifact import Model
from unet.model.network import UNet
from unet.model.precision import fast_precision
from unet.model.predictor import Predictor
from unet.model.settings import ModelSettings, architecture
from unet.sample.scene import draw_scene
from unet.sample.things import LABELS
from unet.settings import Geometry, RequestError
from unet.train.job import train
from unet.train.learner import Learner
from unet.train.optimizer import learning_rate
from unet.train.settings import FitSettings, TrainSettings, check_batch_norm


def learner_of(**settings: Any) -> Learner:
    torch.manual_seed(0)
    network = UNet(
        classes=2, width=8, depth=2, norm=settings.pop("norm", "batch"), dropout=settings.pop("dropout", 0.0)
    )
    return Learner(network, FitSettings(warmup_steps=2, **settings), total_steps=30)


def batch_of(step: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [make_pair(100 * step + place) for place in range(count)]
    return torch.tensor(np.stack([i for i, _ in pairs])), torch.tensor(np.stack([m for _, m in pairs]))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_learner_learns(optimizer: str, precision: str) -> None:
    learner = learner_of(optimizer=optimizer, precision=precision, lr=1e-2, ema=0.5)
    losses = [float(learner.train_step(*batch_of(step))) for step in range(30)]
    assert losses[-1] < losses[0] / 3
    image, mask = make_pair(9900)
    predictor = Predictor(Model(learner.average, read_labels("camvid"), Geometry("native", (40, 56))))
    assert (predictor.predict(image) == mask).mean() > 0.95


@pytest.mark.parametrize(("optimizer", "precision"), [("muon", "auto"), ("adamw", "auto"), ("muon", "fp16")])
def test_a_restored_learner_goes_on_bit_for_bit(optimizer: str, precision: str) -> None:
    straight, first = (learner_of(optimizer=optimizer, precision=precision, dropout=0.3) for _ in range(2))
    for step in range(6):
        straight.train_step(*batch_of(step))
    for step in range(3):
        first.train_step(*batch_of(step))
    second = learner_of(optimizer=optimizer, precision=precision, dropout=0.3)
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        second.train_step(*batch_of(step))
    for name, tensor in straight.average.state_dict().items():
        assert torch.equal(tensor, second.average.state_dict()[name]), name
    assert straight.state_dict()["scaler"] == second.state_dict()["scaler"]


def train_on_scenes(network: UNet, scenes: range, steps: int, **settings: Any) -> tuple[float, UNet]:
    """Train on crops of scenes of the sample set; return the mean loss of the steps, and the averaged network."""
    learner = Learner(network, FitSettings(ema=0.95, **settings), total_steps=steps)
    rng, losses = np.random.default_rng(0), []
    drawn = [draw_scene(seed) for seed in scenes]
    for _ in range(steps):
        crops = []
        for image, mask in (drawn[which] for which in rng.integers(0, len(drawn), 4)):
            top, left = (int(rng.integers(0, length - 96)) for length in mask.shape)
            crops.append((image[top : top + 96, left : left + 96], mask[top : top + 96, left : left + 96]))
        images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True))
        losses.append(float(learner.train_step(images, masks)))
    return float(np.mean(losses)), learner.average


@pytest.mark.slow
def test_an_encoder_trained_on_other_scenes_has_a_lower_loss_in_the_first_steps() -> None:
    def new_network(seed: int) -> UNet:
        torch.manual_seed(seed)
        return UNet(classes=len(LABELS.classes), **architecture(ModelSettings(encoder="resnet18")))

    _, before = train_on_scenes(new_network(1), range(100, 220), 200, optimizer="adamw", lr=2e-3)
    scratch, _ = train_on_scenes(new_network(0), range(24), 30)
    network = new_network(0)
    assert network.encoder is not None
    assert before.encoder is not None
    network.encoder.load_state_dict(before.encoder.state_dict())
    pretrained, _ = train_on_scenes(network, range(24), 30, encoder_weights="those of before")
    print(f"mean loss of 30 steps: {pretrained:.3f} pretrained, {scratch:.3f} from scratch")
    assert pretrained < scratch


def test_a_state_without_loss_scaling_is_taken_in_fp16() -> None:
    before = learner_of(precision="fp32").state_dict()
    for state in (before, {name: part for name, part in before.items() if name != "scaler"}):
        learner_of(precision="fp16").load_state_dict(state)


def test_a_gradient_that_overflows_in_fp16_changes_no_weight_and_halves_the_scale() -> None:
    learner = learner_of(precision="fp16")
    learner.train_step(*batch_of(0))
    state = learner.state_dict()
    learner.load_state_dict(state | {"scaler": state["scaler"] | {"scale": 1e38}})
    weights = [weight.clone() for weight in learner.network.parameters()]
    assert torch.isfinite(learner.train_step(*batch_of(1)))
    assert all(torch.equal(a, b) for a, b in zip(weights, learner.network.parameters(), strict=True))
    assert learner.state_dict()["scaler"]["scale"] == pytest.approx(5e37)
    learner.load_state_dict(learner.state_dict() | {"scaler": state["scaler"]})
    learner.train_step(*batch_of(2))
    assert learner.is_finite()
    assert not torch.equal(weights[0], next(learner.network.parameters()))


def test_a_learner_says_which_precision_auto_has_become() -> None:
    assert learner_of().precision == fast_precision("cpu")
    assert learner_of(precision="fp16").precision == "fp16"


ONE_VALUE: dict[str, Any] = {"size": (16, 16), "fit": FitSettings(batch_size=1)}


def test_settings_that_leave_batch_norm_one_value_a_channel_are_refused() -> None:
    with pytest.raises(RequestError, match=r"^--batch-size 1: .*16 x 16 pixels.*--depth 4"):
        check_batch_norm(TrainSettings(**ONE_VALUE))
    encoder = ModelSettings(encoder="resnet18", norm="group")
    with pytest.raises(RequestError, match=r"^--batch-size 1: .* in resnet18; .* or no --encoder"):
        check_batch_norm(TrainSettings(size=(32, 17), model=encoder, fit=FitSettings(batch_size=1)))
    with pytest.raises(RequestError, match=r"--norm group"):  # one of the two workers has one image
        check_batch_norm(TrainSettings(size=(9, 16), workers="1:2", fit=FitSettings(batch_size=6, accumulate=2)))


def test_they_are_refused_before_workers_start(boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet.train.job.connect", None)  # what would start some
    data = DataSettings(data=str(boxes), classes=str(boxes / "classes.csv"))
    with pytest.raises(RequestError, match=r"^--batch-size 1"):
        train(TrainSettings(**ONE_VALUE, data=data, output=str(tmp_path / "runs")))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": (16, 17)},
        {"fit": FitSettings(batch_size=2)},
        {"model": ModelSettings(norm="group")},
        {"model": ModelSettings(model="classic")},
        {"model": ModelSettings(depth=3)},
        {"model": ModelSettings(encoder="resnet18"), "size": (32, 33)},
        {"gpu": True, "workers": "2", "fit": FitSettings(batch_size=2)},
    ],
)
def test_settings_that_leave_it_two_are_taken(settings: dict[str, Any]) -> None:
    check_batch_norm(TrainSettings(**ONE_VALUE | settings))


def test_accumulation_gives_the_step_of_the_whole_batch() -> None:
    images, masks = batch_of(0, count=4)
    masks[0, :30] = IGNORE  # unequal numbers of valid pixels
    learners = [
        learner_of(norm="none", precision="fp32", loss="ce", optimizer="adamw", accumulate=n, ema=0) for n in (1, 2)
    ]
    losses = [float(learner.train_step(images, masks)) for learner in learners]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for whole, parts in zip(*(learner.network.parameters() for learner in learners), strict=True):
        assert torch.allclose(whole, parts, atol=1e-5)


def test_without_averaging_the_average_is_the_network() -> None:
    learner = learner_of(ema=0.0)
    learner.train_step(*batch_of(0))
    for average, weight in zip(learner.average.parameters(), learner.network.parameters(), strict=True):
        assert torch.equal(average, weight)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
def test_the_learning_rate_warms_up_peaks_and_falls(schedule: str) -> None:
    settings = FitSettings(lr=1.0, warmup_steps=10, lr_schedule=schedule)  # type: ignore[arg-type]
    rates = [learning_rate(step, settings, 100) for step in range(100)]
    assert rates[0] < rates[5] < rates[10] == max(rates) == 1.0
    assert rates[-1] == 1.0 if schedule == "constant" else 0 < rates[-1] < 0.02
