"""Several workers take the very steps of one: the loss and the gradient are those of the whole batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.conftest import make_pair, write_pair
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.data.settings import AugmentSettings, DataSettings
from unet.model.artifact import Model
from unet.model.network import UNet
from unet.model.predictor import Predictor
from unet.settings import Geometry
from unet.train.examples import BatchRequest, BatchSpec, make_batch
from unet.train.learner import Learner
from unet.train.loss import LossSums
from unet.train.ranks import all_reduce_sum, rank, world_size
from unet.train.schedule import samples_of_step, share
from unet.train.settings import FitSettings
from unet.train.validation import validate

STEPS, BATCH = 20, 5


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Pairs with void on some of them only, and there on most of the image."""
    for part, first, count in (("train", 0, 12), ("val", 100, 7)):
        for seed in range(first, first + count):
            image, mask = make_pair(seed)
            if seed % 3 == 0:
                mask[:35] = 2
            write_pair(tmp_path / part, f"{seed:03}", image, mask)
    (tmp_path / "classes.csv").write_text("index,name,red,green,blue\n0,ground,0,0,0\n1,box,255,0,0\n2,void,9,9,9\n")
    return tmp_path


def train_share(folder: Path, dtype: torch.dtype, accumulate: int, options: dict[str, Any]) -> dict[str, Any]:
    """Losses of STEPS steps, and the validation's counts, as this rank sees them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = read_labels(str(folder / "classes.csv"))
    labelled = find_labelled_set(DataSettings(data=str(folder), classes="camvid"))
    spec = BatchSpec(labels, Geometry("resize", (40, 56)), AugmentSettings(), seed=3)
    network = UNet(classes=2, width=8, depth=2, norm="none", dropout=0.0).to(dtype)
    settings = FitSettings(
        optimizer="adamw", lr=1e-3, precision="fp32", batch_size=BATCH * accumulate, accumulate=accumulate, **options
    )
    weights = torch.tensor([0.5, 2.0], dtype=dtype)
    learner = Learner(network, settings, total_steps=STEPS, class_weights=weights)
    losses = []
    for step in range(STEPS):
        drawn = samples_of_step(step, seed=3, rows=len(labelled.train), batch=BATCH * accumulate)
        parts = [drawn[first : first + BATCH] for first in range(0, len(drawn), BATCH)]
        samples = [sample for part in parts for sample in share(part, rank(), world_size())]
        batch = make_batch(BatchRequest(tuple(labelled.train[sample.row] for sample in samples), tuple(samples)), spec)
        losses.append(float(learner.train_step(torch.tensor(batch.images), torch.tensor(batch.masks))))
    predictor = Predictor(Model(learner.average, labels, spec.geometry), precision="fp32")
    own = share(labelled.val, rank(), world_size())
    found = validate(predictor, learner.sums_of, (make_batch(BatchRequest((pair,)), spec) for pair in own))
    counts = all_reduce_sum([torch.from_numpy(found.matrix.counts)])[0]
    return {
        "losses": losses,
        "counts": counts,
        "val_loss": float(learner.loss_of(LossSums(*all_reduce_sum(found.sums)))),
    }


CASES = [
    (torch.float32, 1e-4, 1, {"loss": "ce"}),
    (torch.float32, 1e-4, 1, {"loss": "ce+dice"}),
    (torch.float64, 1e-9, 1, {"loss": "ce"}),
    (torch.float64, 1e-9, 1, {"loss": "ce+dice"}),
    (torch.float64, 1e-9, 2, {"loss": "ce"}),
    (torch.float64, 1e-9, 2, {"loss": "ce+dice"}),
]


def work_as(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = [train_share(folder, dtype, parts, options) for dtype, _, parts, options in CASES]
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_take_the_steps_of_one(uneven: Path) -> None:
    mp.spawn(work_as, (uneven,), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    results = [torch.load(uneven / f"rank-{rank}.pt") for rank in range(2)]
    for (dtype, tolerance, parts, options), one, other in zip(CASES, *results, strict=True):
        alone = train_share(uneven, dtype, parts, options)
        assert alone["losses"][-1] < alone["losses"][0]
        for of_a_rank in (one, other):
            assert of_a_rank["losses"] == pytest.approx(alone["losses"], rel=tolerance), (dtype, options)
            assert of_a_rank["val_loss"] == pytest.approx(alone["val_loss"], rel=tolerance)
            assert np.array_equal(of_a_rank["counts"].sum(1), alone["counts"].sum(1))
            if dtype == torch.float64:
                assert torch.equal(of_a_rank["counts"], alone["counts"])


def compile_as(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    images, masks = (torch.tensor(np.stack(part)) for part in zip(*map(make_pair, range(4)), strict=True))
    mine = slice(2 * rank, 2 * rank + 2)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        settings = FitSettings(batch_size=4, accumulate=2, precision="fp32", compile=compiled, warmup_steps=0)
        network = UNet(classes=2, width=4, depth=1, norm="batch", dropout=0.0)
        learner = Learner(network, settings, total_steps=3)
        losses.append([float(learner.train_step(images[mine], masks[mine])) for _ in range(3)])
    torch.save(losses, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_compile(tmp_path: Path) -> None:
    mp.spawn(compile_as, (tmp_path,), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    (plain, compiled), other = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    assert other == [plain, compiled]
    assert compiled == pytest.approx(plain, rel=1e-3)
