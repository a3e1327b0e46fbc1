"""The training job, interrupted: run again it ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
import torch

from tests.conftest import make_pair, write_boxes, write_pair
from tests.jobs.job_process import JobProcess
from tests.jobs.training import CHECKPOINT_EVERY, EPOCHS, STEPS, training_flags
from tests.processes import descendants
from tests.servers.proxy import Action, Proxy
from unet.command_line import run
from unet.model.artifact import Model
from unet.storage import store
from unet.storage.objects import join_uri
from unet.train.checkpoint import Checkpoints
from unet.train.job import train
from unet.train.journal import read_entries
from unet.train.resume import has_begun
from unet.train.settings import TrainSettings

Victim = Literal["worker", "driver", "all"]


class Job(JobProcess):
    """The training job as a process of its own."""

    def __init__(self, arguments: list[str], log: Path, **environment: str) -> None:
        super().__init__("train.py", arguments, log, **environment)

    def wait_for_step(self, checkpoints: str, step: int) -> bool:
        """Waits until there is a checkpoint of `step` or later; False if the job ends before."""
        while self.process.poll() is None:
            if any(int(name[5:14]) >= step for name in store.list_files(checkpoints)):
                return True
            time.sleep(0.02)
        return False

    def kill(self, victim: Victim) -> None:
        family = descendants(self.process.pid)
        if victim == "driver":
            self.process.kill()
        for process in family if victim != "driver" else ():
            with suppress(OSError):
                if victim == "all" or b"RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
                    os.kill(process, signal.SIGKILL)
        if victim == "all":
            self.process.kill()
        if victim != "worker":
            self.process.wait()


def without_timings(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: entry[name] for name in entry.keys() - {"seconds", "images_per_second"}} for entry in entries]


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def assert_same_runs(one: str, other: str) -> None:
    """Model folder, last checkpoint and metrics are equal, timings and names apart."""
    for name in ("model/model.safetensors",):
        assert store.read(join_uri(one, name)) == store.read(join_uri(other, name))
    models = [json.loads(store.read(join_uri(folder, "model/model.json"))) for folder in (one, other)]
    for model in models:
        del model["training"]
    assert models[0] == models[1]
    assert without_timings(read_entries(one)) == without_timings(read_entries(other))
    states = []
    for folder in (one, other):
        checkpoints = Checkpoints(folder)
        states.append(checkpoints.load(checkpoints.latest() or "none"))
    for state in states:
        state["entries"] = without_timings(state["entries"])
    assert same(states[0], states[1])


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> Path:
    """The output of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("once")
    arguments = with_output(flags_on(write_boxes(folder / "boxes")), folder / "output")
    assert run(train, TrainSettings, arguments) == 0
    return folder / "output"


@pytest.fixture
def undisturbed(boxes: Path, tmp_path: Path, run_once: Path) -> list[str]:
    """The flags of such a run, but for --output. It is in tmp_path/undisturbed."""
    shutil.copytree(run_once, tmp_path / "undisturbed")
    return flags_on(boxes)


def flags_on(boxes: Path) -> list[str]:
    return [part if part != "CLASSES" else str(boxes / "classes.csv") for part in training_flags(str(boxes), "OUTPUT")]


def with_output(arguments: list[str], output: object) -> list[str]:
    return [part if part != "OUTPUT" else str(output) for part in arguments]


@pytest.fixture
def same_ray(one_ray: None) -> dict[str, str]:
    """The environment in which a job uses the Ray of the tests."""
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.mark.slow
def test_promise_28_a_killed_worker_is_replaced_and_a_killed_driver_may_be_run_again(
    undisturbed: list[str], tmp_path: Path, same_ray: dict[str, str]
) -> None:
    arguments, log = with_output(undisturbed, tmp_path / "killed"), tmp_path / "log"
    job = Job(arguments, log, **same_ray)
    assert job.wait_for_step(str(tmp_path / "killed/run/checkpoints"), CHECKPOINT_EVERY)
    for folder in Path("/proc").glob("[0-9]*"):  # of the shared Ray, which is no child of the job
        with suppress(OSError):
            if b"RayTrainWorker" in folder.joinpath("cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
    assert job.wait_for_step(str(tmp_path / "killed/run/checkpoints"), STEPS + CHECKPOINT_EVERY)
    job.kill("driver")
    assert "going on after step" in log.read_text()
    assert run(train, TrainSettings, arguments) == 0
    assert_same_runs(str(tmp_path / "undisturbed/run"), str(tmp_path / "killed/run"))
    assert run(train, TrainSettings, [*arguments, "--lr", "1"]) == 2
    assert run(train, TrainSettings, arguments) == 0  # finished


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_promises_28_and_29_ten_random_kills(undisturbed: list[str], tmp_path: Path, number: int) -> None:
    rng = random.Random(number)
    victim: Victim = ("worker", "driver", "all")[number % 3]
    arguments, alone = with_output(undisturbed, tmp_path / "killed"), {"RAY_ADDRESS": "local"}
    job = Job(arguments, tmp_path / "log", **alone)
    step = rng.randrange(1, EPOCHS * STEPS - CHECKPOINT_EVERY)
    assert job.wait_for_step(str(tmp_path / "killed/run/checkpoints"), step)
    time.sleep(rng.uniform(0, 0.3))
    job.kill(victim)
    if victim == "worker":
        assert job.end() == 0
    else:
        assert Job(arguments, tmp_path / "log", **alone).end() == 0
    assert_same_runs(str(tmp_path / "undisturbed/run"), str(tmp_path / "killed/run"))


@pytest.mark.slow
@pytest.mark.parametrize("action", ["hold", "hold_answer"])
@pytest.mark.parametrize("file", ["checkpoints/*", "model/model.safetensors", "model/model.json", "metrics.jsonl"])
def test_promise_28_killed_at_any_write_of_an_epoch_the_run_goes_on(
    undisturbed: list[str], bucket: str, proxy: Proxy, tmp_path: Path, file: str, action: Action
) -> None:
    arguments, alone = with_output(undisturbed, bucket), {"RAY_ADDRESS": "local"}
    proxy.add(verb="PUT", path=f"*/run/{file}*", nth=range(1, 2), action=action)
    job = Job(arguments, tmp_path / "log", **alone)
    assert proxy.holds.wait(120), job.log.read_text()
    job.kill("all")
    proxy.release.set()
    assert Job(arguments, tmp_path / "log", **alone).end() == 0
    assert_same_runs(str(tmp_path / "undisturbed/run"), f"{bucket}/run")


@pytest.mark.slow
def test_a_run_on_s3_where_a_tenth_of_all_requests_fails_ends_as_on_a_disk(
    undisturbed: list[str], boxes: Path, bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    for file in boxes.rglob("*.png"):
        store.write(f"{bucket}/boxes/{file.relative_to(boxes)}", file.read_bytes())
    for first, action in ((7, "500"), (17, "reset"), (27, "503"), (37, "cut")):
        proxy.add(nth=range(first, 1 << 30, 40), action=action)  # type: ignore[arg-type]
    arguments = [part if part != str(boxes) else f"{bucket}/boxes" for part in with_output(undisturbed, bucket)]
    job = Job(arguments, tmp_path / "log", RAY_ADDRESS="local")
    assert job.end() == 0
    assert len(proxy.requests) > 200
    assert_same_runs(str(tmp_path / "undisturbed/run"), f"{bucket}/run")
    assert Model.load(f"{bucket}/run/model").scores["epoch"] >= 1
    names = {name.split("/")[0] for name in store.list_files(f"{bucket}/run")}
    assert names == {
        "check.json",
        "checkpoints",
        "identity.json",
        "metrics.jsonl",
        "model",
        "report",
        "settings.yaml",
        "tensorboard",
    }


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not has_begun(str(tmp_path))
    with Checkpoints(str(tmp_path)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"step": torch.tensor(step)})
    assert has_begun(str(tmp_path))
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert len(files) == 2
    files[1].write_bytes(files[1].read_bytes()[:-1])
    damaged = Checkpoints(str(tmp_path))
    assert int(damaged.load(damaged.latest() or "none")["step"]) == 2
    assert files[1].name in capsys.readouterr().out


def test_a_checkpoint_is_of_its_moment_however_states_grow_shrink_and_change(tmp_path: Path) -> None:
    sizes = (10, 3_000_000, 1_000_000, 5_000_000)
    with Checkpoints(str(tmp_path)) as checkpoints:
        for step, size in enumerate(sizes):
            weights = torch.arange(float(size))
            checkpoints.save(step, {"weights": weights})
            weights.zero_()
    for name, size in zip(sorted(path.name for path in (tmp_path / "checkpoints").iterdir()), sizes[2:], strict=True):
        assert torch.equal(checkpoints.load(name)["weights"], torch.arange(float(size)))


@pytest.mark.slow
def test_sigterm_ends_a_run_within_two_seconds_and_it_goes_on(
    undisturbed: list[str], tmp_path: Path, same_ray: dict[str, str]
) -> None:
    arguments = with_output(undisturbed, tmp_path / "stopped")
    job = Job(arguments, tmp_path / "log", **same_ray)
    assert job.wait_for_step(str(tmp_path / "stopped/run/checkpoints"), CHECKPOINT_EVERY)
    began = time.monotonic()
    job.process.terminate()
    assert job.end() == 143
    assert time.monotonic() - began < 2
    assert "the same command goes on" in job.log.read_text()
    assert "SIGTERM received" not in job.log.read_text()  # Ray's own word, with a stack
    assert run(train, TrainSettings, arguments) == 0
    assert_same_runs(str(tmp_path / "undisturbed/run"), str(tmp_path / "stopped/run"))


@pytest.mark.slow
def test_uneven_shares_lose_no_image_and_take_equal_steps(tmp_path: Path, one_ray: None) -> None:
    """41 training images in batches of 8 and 7 validation images, on two workers."""
    for part, first, number in (("train", 0, 41), ("val", 100, 7)):
        for seed in range(first, first + number):
            image, mask = make_pair(seed)
            mask[: seed % 30] = 2
            write_pair(tmp_path / "set" / part, f"{seed:03}", image, mask)
    (tmp_path / "classes.csv").write_text("index,name,red,green,blue\n0,ground,0,0,0\n1,box,255,0,0\n2,void,9,9,9\n")
    flags = {"classes": tmp_path / "classes.csv", "workers": 2, "epochs": 2, "batch_size": 8, "size": "40 56"}
    arguments = training_flags(str(tmp_path / "set"), str(tmp_path / "out"), **flags)
    place = arguments.index("--steps-per-epoch")
    assert run(train, TrainSettings, arguments[:place] + arguments[place + 2 :]) == 0
    entries = read_entries(str(tmp_path / "out/run"))
    assert [entry["step"] for entry in entries] == [6, 12]
    valid = sum(40 * 56 - 56 * (seed % 30) for seed in range(100, 107))
    model = Model.load(str(tmp_path / "out/run/model"))
    assert np.sum(model.scores["confusion"]) == valid
