"""Training on a GPU: no step waits for it, it learns what a CPU does, resumes, compiles, and shares with ranks."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.train.test_learner import batch_of
from unet.model.network import UNet
from unet.train.learner import Learner
from unet.train.settings import FitSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

STEPS = 6


def learner_on(device: str, **settings: Any) -> Learner:
    torch.manual_seed(0)
    network = UNet(classes=2, width=8, depth=2, norm="batch", dropout=settings.pop("dropout", 0.0))
    weights = torch.tensor([0.5, 2.0])
    return Learner(
        network,
        FitSettings(warmup_steps=2, **{"batch_size": 4} | settings),
        total_steps=30,
        class_weights=weights,
        device=device,
    )


def losses_of(learner: Learner, steps: range = range(STEPS)) -> list[float]:
    return [float(learner.train_step(*batch_of(step))) for step in steps]


@pytest.fixture
def no_synchronization() -> Iterator[None]:
    """An operation that waits for the GPU raises, once the test has asked for it."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "adamw", "loss": "ce"}, {"accumulate": 2, "dropout": 0.3}, {"clip": 0, "ema": 0}],
)
def test_no_step_waits_for_the_gpu(settings: dict[str, Any], precision: str, no_synchronization: None) -> None:
    learner = learner_on("cuda", precision=precision, **settings)
    losses = []
    for step in range(STEPS):
        if step == 2:  # what is prepared once is prepared
            torch.cuda.set_sync_debug_mode("error")
        losses.append(learner.train_step(*batch_of(step)))
    torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(losses)).all()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_it_learns_what_a_cpu_does(optimizer: str) -> None:
    there = losses_of(learner_on("cuda", optimizer=optimizer, precision="fp32"))
    assert there == pytest.approx(losses_of(learner_on("cpu", optimizer=optimizer, precision="fp32")), rel=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(precision: str) -> None:
    losses = losses_of(learner_on("cuda", precision=precision, lr=1e-2), range(30))
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_a_restored_learner_goes_on(precision: str) -> None:
    straight, first, second = (learner_on("cuda", precision=precision) for _ in range(3))
    expected = losses_of(straight)
    losses_of(first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True, map_location="cuda"))
    assert losses_of(second, range(3, STEPS)) == pytest.approx(expected[3:], rel=0.05)


def test_a_compiled_learner_takes_the_same_steps() -> None:
    compiled = losses_of(learner_on("cuda", compile=True, precision="fp32"))
    assert compiled == pytest.approx(losses_of(learner_on("cuda", precision="fp32")), rel=0.05)


def work_as(rank: int, folder: Path, backend: str) -> None:
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        learner = learner_on("cuda", precision="fp32")
        mine = slice(2 * rank, 2 * rank + 2)
        parts = ([part[mine] for part in batch_of(step)] for step in range(STEPS))
        torch.save([float(learner.train_step(*part)) for part in parts], folder / f"rank-{rank}.pt")
    except dist.DistBackendError as error:
        (folder / "refused").write_text(str(error))
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_two_workers_on_one_gpu_take_the_steps_of_one(backend: str, tmp_path: Path) -> None:
    """Batch norm included, whose statistics are those of both."""
    if backend == "nccl" and not dist.is_nccl_available():
        pytest.skip("this PyTorch has no NCCL")
    mp.spawn(work_as, (tmp_path, backend), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    if (tmp_path / "refused").exists():
        pytest.skip("NCCL wants a GPU for each rank")
    one, other = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    assert one == pytest.approx(other, rel=1e-5)
    assert one == pytest.approx(losses_of(learner_on("cuda", precision="fp32")), rel=0.05)
