"""Segmentation under fire: kills, signals, failing storage, objects that end their worker, two runs at once."""

import errno
import gc
import io
import json
import os
import pickle
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch

from tests.jobs.bench import Bench, fill, image_bytes, save_model
from tests.jobs.job_process import JobProcess
from tests.processes import command_line, descendants
from tests.servers.proxy import Action, Proxy
from unet.command_line import run
from unet.data.image import Array
from unet.data.planes import decode_image
from unet.model.artifact import Model
from unet.model.predictor import Prediction, Predictor
from unet.runtime.pool import HELD_SECONDS, REPLY_SECONDS
from unet.segment import job as segmentation
from unet.segment.item import Item, Outcome
from unet.segment.job import segment
from unet.segment.lease import acquire
from unet.segment.recorder import PART_SECONDS
from unet.segment.run_spec import LEASE_KEY
from unet.segment.segmenter import failure
from unet.segment.settings import SegmentSettings
from unet.segment.worker import SegmentWorker
from unet.storage.store import open_store

LEASE_SECONDS = 2.0

UNRECORDED_SECONDS = REPLY_SECONDS + PART_SECONDS[0] + 0.5
"""A row waits for its worker's reply, then for the next part of the ledger, and a moment for its turn with each."""


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """Whatever happened to a run, the Ray that it shared with others has its processors again."""
    yield
    gc.collect()  # a failed plan, and with it the handles of its workers, lies in cycles
    deadline = time.monotonic() + 20
    while left := [process for process in descendants(os.getpid()) if b"SegmentWorker" in command_line(process)]:
        assert time.monotonic() < deadline, [command_line(process) for process in left]
        time.sleep(0.1)


class Job(JobProcess):
    """The segmentation job as a process of its own, and with a Ray of its own if `environment` names none."""

    def __init__(self, bench: Bench, log: Path, *flags: str, **environment: str) -> None:
        places = ["--input", bench.images, "--output", bench.masks, "--model", bench.model]
        arguments = [*places, "--lease", str(LEASE_SECONDS), *flags]
        super().__init__("segment.py", arguments, log, **({"RAY_ADDRESS": "local"} | environment))

    def wait_for_masks(self, bench: Bench, count: int) -> None:
        deadline = time.monotonic() + 120
        while len(bench.mask_keys()) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def kill(self, victim: str) -> None:
        """Kills the driver, a worker or the raylet; what is killed may be gone already."""
        title = {"worker": b"SegmentWorker", "raylet": b"/raylet"}.get(victim)
        for process in descendants(self.process.pid) if title else [self.process.pid]:
            with suppress(OSError):
                if title is None or title in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0]:
                    os.kill(process, signal.SIGKILL)


def last_rows(bench: Bench) -> dict[str, dict[str, Any]]:
    """The report of the last run that came to its end."""
    store = open_store(bench.masks)
    keys = [item.key for page in store.list() for item in page if item.key.endswith("summary.json")]
    summaries = [json.loads(store.get(key)) | {"folder": key.rpartition("/")[0]} for key in sorted(keys)]
    last = [summary for summary in summaries if summary["complete"]][-1]
    rows = pq.read_table(io.BytesIO(store.get(f"{last['folder']}/report.parquet"))).to_pylist()
    assert sum(last["counts"].values()) == len(rows) == len({row["key"] for row in rows})
    return {row["key"]: row for row in rows}


def clean_masks(bench: Bench) -> dict[str, bytes]:
    """The masks that a run makes that nothing happens to."""
    other = Bench(bench.images.rpartition("/")[0])
    other.masks = f"{bench.masks}-clean"
    other.run()
    return other.all_masks()


def image_gets(proxy: Proxy) -> Counter[str]:
    return Counter(path for verb, path in proxy.requests if verb == "GET" and "/images/" in path)


def kill_and_go_on(bench: Bench, proxy: Proxy, tmp_path: Path, victim: str, masks: int, seconds: float) -> int:
    """Kills the victim once so many masks are there and so many seconds have passed, then runs the job to its end.

    Returns how many masks the killed run wrote so late that the ledger may not have known of them.
    """
    expected = clean_masks(bench)
    before = len(proxy.requests)
    job = Job(bench, tmp_path / "killed", "--workers", "2")
    job.wait_for_masks(bench, masks)
    time.sleep(seconds)
    killed = time.monotonic()
    job.kill(victim)
    code = job.end()
    late = [
        path
        for (verb, path), moment in zip(proxy.requests[before:], proxy.times[before:], strict=True)
        if verb == "PUT" and moment > killed - UNRECORDED_SECONDS and path.endswith(".png.png")
    ]
    if code == 0:  # a run whose raylet is killed late may still come to its end
        assert victim != "driver"
        assert bench.all_masks() == expected
    else:
        assert victim != "worker"
    assert Job(bench, tmp_path / "second", "--workers", "2").end() == 0
    assert bench.all_masks() == expected
    rows = last_rows(bench)
    assert {f"{key}.png" for key in rows} == expected.keys()
    assert {row["status"] for row in rows.values()} <= {"done", "unchanged"}
    del proxy.requests[:before], proxy.times[:before]
    return len(late)


def test_promise_06_after_a_kill_of_the_driver_the_same_command_goes_on(
    on_s3: Bench, one_ray: None, tmp_path: Path
) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, [f"{i:03}.png" for i in range(200)])
    expected = clean_masks(on_s3)
    job = Job(on_s3, tmp_path / "log", RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    job.wait_for_masks(on_s3, 20)
    job.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * LEASE_SECONDS)  # by now its workers wait for word from it
    job.kill("driver")
    job.end()
    assert len(on_s3.all_masks()) < 200
    assert segment(on_s3.settings()) == 0
    assert on_s3.all_masks() == expected
    assert {f"{key}.png" for key in last_rows(on_s3)} == expected.keys()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_promise_06_twenty_random_kills(on_s3: Bench, proxy: Proxy, tmp_path: Path, number: int) -> None:
    rng = random.Random(number)
    save_model(on_s3.model, width=16)
    fill(on_s3.images, [f"{i:03}.png" for i in range(400)])
    victim = ("driver", "worker", "raylet")[number % 3]
    late = kill_and_go_on(on_s3, proxy, tmp_path, victim, rng.randrange(1, 360), rng.uniform(0, 0.5))
    again = {path: count for path, count in image_gets(proxy).items() if count > 1}
    held = max(2 * 24, HELD_SECONDS * late / UNRECORDED_SECONDS)  # by two workers: as they had written until then
    print(f"{len(again)} images were read again, {late} masks were written late, and {held:.0f} may have been held")
    assert max(again.values(), default=1) <= 3
    assert len(again) <= late + held


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_promise_38_an_end_costs_at_most_five_seconds_of_work(
    on_s3: Bench, proxy: Proxy, tmp_path: Path, number: int
) -> None:
    """With objects that take a fifth of a second each."""
    rng = random.Random(number)
    save_model(on_s3.model, width=32)
    keys = [f"{i:03}.png" for i in range(100)]
    for seed, key in enumerate(keys):
        open_store(on_s3.images).put(key, image_bytes(seed, (240, 320)))
    job = Job(on_s3, tmp_path / "killed", "--workers", "2")
    job.wait_for_masks(on_s3, rng.randrange(1, 90))
    time.sleep(rng.uniform(0, 0.5))
    killed = time.monotonic()
    job.process.send_signal((signal.SIGKILL, signal.SIGTERM)[number % 2])
    assert job.end() != 0
    assert Job(on_s3, tmp_path / "second", "--workers", "2").end() == 0
    begun: dict[str, list[float]] = {}
    for (verb, path), moment in zip(proxy.requests, proxy.times, strict=True):
        if verb == "GET" and "/images/" in path:
            begun.setdefault(path, []).append(moment)
    again = [moments[0] for moments in begun.values() if len(moments) > 1]
    print(f"{len(again)} of {len(keys)} again, the first {killed - min(again, default=killed):.1f} s before the end")
    assert len(begun) == len(keys)
    assert all(moment > killed - 5 for moment in again)
    assert on_s3.all_masks() == clean_masks(on_s3)


def test_promise_07_sigterm_records_what_is_done_within_two_seconds(
    on_s3: Bench, one_ray: None, proxy: Proxy, tmp_path: Path
) -> None:
    save_model(on_s3.model, width=32)
    fill(on_s3.images, [f"{i:03}.png" for i in range(300)])
    job = Job(on_s3, tmp_path / "log", RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    job.wait_for_masks(on_s3, 40)
    masks = {key.removesuffix(".png") for key in on_s3.all_masks()}
    began = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 128 + signal.SIGTERM
    assert time.monotonic() - began < 2.0
    assert "stopped by SIGTERM; the same command goes on" in job.log.read_text()
    kept = on_s3.recorded_keys()
    assert len(masks - kept) <= 2 * 40  # of a second, by two workers
    proxy.requests.clear()
    statuses = on_s3.statuses()
    assert Counter(statuses.values()) == {"unchanged": len(kept), "done": 300 - len(kept)}
    assert len(image_gets(proxy)) == 300 - len(kept)


@pytest.mark.slow
def test_a_time_limit_ends_a_run_as_a_signal_does(on_s3: Bench, proxy: Proxy, tmp_path: Path) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, [f"{i:03}.png" for i in range(40)])
    proxy.add(verb="GET", path="*/images/03*", action="hold")
    job = Job(on_s3, tmp_path / "log", "--time-limit", "12")
    assert job.end() == 143
    assert "stopped by --time-limit" in job.log.read_text()
    proxy.release.set()
    acquire(on_s3.masks, LEASE_KEY, run="next", lifetime=60, fence=1).release()  # it is free at once


def test_promise_08_a_run_refuses_an_output_that_another_holds(
    on_s3: Bench, one_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, ["a.png"])
    lease = acquire(on_s3.masks, LEASE_KEY, run="first", lifetime=LEASE_SECONDS, fence=1)
    assert segment(on_s3.settings()) == 4
    assert "another run holds it (first" in capsys.readouterr().err
    lease.release()
    assert segment(on_s3.settings()) == 0


@pytest.mark.slow
def test_promise_08_a_stopped_holder_that_wakes_up_writes_nothing_more(on_s3: Bench, s3: str, tmp_path: Path) -> None:
    save_model(on_s3.model, width=16)
    fill(on_s3.images, [f"{i:03}.png" for i in range(300)])
    with Proxy(s3) as of_first, Proxy(s3) as of_second:
        first = Job(on_s3, tmp_path / "first", "--workers", "1", AWS_ENDPOINT_URL=of_first.url)
        first.wait_for_masks(on_s3, 5)
        first.process.send_signal(signal.SIGSTOP)  # the driver alone: its workers live on
        second = Job(on_s3, tmp_path / "second", "--workers", "1", "--tta", AWS_ENDPOINT_URL=of_second.url)
        deadline = time.monotonic() + 60
        while not any(verb == "PUT" and path.endswith("/lease") for verb, path in of_second.requests):
            assert time.monotonic() < deadline, second.log.read_text()
            time.sleep(0.01)
        before = len(of_first.requests)
        second.wait_for_masks(on_s3, 50)
        first.process.send_signal(signal.SIGCONT)
        assert first.end() == 4
        assert second.end() == 0
        late = [path for verb, path in of_first.requests[before:] if verb in ("PUT", "POST", "DELETE")]
        assert not [path for path in late if not path.endswith("/lease")]
    assert "has taken it over" in first.log.read_text()
    assert "taking over" in second.log.read_text()
    assert set(on_s3.statuses(verify=True, tta=True).values()) == {"unchanged"}


KINDS: tuple[Action, ...] = ("500", "503", "reset", "cut", "flip")


def test_promise_09_where_a_fifth_of_all_requests_fails_the_masks_are_the_same(on_s3: Bench, proxy: Proxy) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, [f"{i:03}.png" for i in range(60)])
    expected = clean_masks(on_s3)
    clean = len(proxy.requests)
    proxy.requests.clear()
    for place, kind in enumerate(KINDS):
        proxy.add(nth=range(place, 10**6, len(KINDS) * 5 - len(KINDS) + 1), action=kind)
    rows = on_s3.run(retry_for=60)
    assert {row["status"] for row in rows.values()} == {"done"}
    assert len(rows) == 60
    assert len(proxy.requests) <= 2 * clean
    proxy.rules.clear()
    assert on_s3.all_masks() == expected


@pytest.mark.slow
def test_promise_09_a_server_that_falls_silent_is_asked_again(on_s3: Bench, proxy: Proxy, tmp_path: Path) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, [f"{i:03}.png" for i in range(20)])
    for number in (3, 4, 5):  # once each, for 60 s or until the client gives up
        proxy.add(path=f"*/images/00{number}.png*", nth=range(1), action="hold")
        proxy.add(verb="PUT", path=f"*/masks/00{number + 3}.png.png*", nth=range(1), action="hold_answer")
    began = time.monotonic()
    assert Job(on_s3, tmp_path / "log", "--workers", "2").end() == 0
    assert time.monotonic() - began < 90
    assert {row["status"] for row in last_rows(on_s3).values()} == {"done"}
    assert len(on_s3.mask_keys()) == 20


@pytest.mark.slow
def test_promise_12_expired_credentials_end_a_run_with_one_message(on_s3: Bench, proxy: Proxy, tmp_path: Path) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, [f"{i:03}.png" for i in range(60)])
    proxy.add(verb="GET", path="*/images/*.png*", nth=range(20, 10**6), action="403")
    job = Job(on_s3, tmp_path / "log")
    assert job.end() == 1
    said = job.log.read_text()
    assert said.count("ExpiredToken") == 1
    assert "Traceback" not in said
    proxy.rules.clear()
    statuses = Counter(on_s3.statuses().values())
    assert set(statuses) <= {"done", "unchanged"}  # no object was blamed
    assert sum(statuses.values()) == 60


def test_promise_12_credentials_that_are_renewed_in_their_file_are_found(
    on_s3: Bench, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, ["a.png", "b.png"])
    file = tmp_path / "credentials"
    text = "[default]\naws_access_key_id = {}\naws_secret_access_key = secret\n"
    file.write_text(text.format("old"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    store = open_store(on_s3.images)
    store.get("a.png")
    proxy.refused_keys.add("old")
    file.write_text(text.format("new"))
    assert store.get("b.png") == image_bytes(1)


class Fatal(SegmentWorker):
    """Workers that some objects crash."""

    def submit(self, task: Item) -> "Future[Outcome]":
        if "poison" in task.key:
            os._exit(1)
        return super().submit(task)


def test_promise_19_an_object_that_crashes_its_worker_quarantines_itself_only(
    on_s3: Bench, one_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, [f"{i:02}.png" for i in range(30)] + ["05-poison.png"])
    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "SegmentWorker", Fatal)
        assert segment(on_s3.settings(max_failed="1")) == 0
    rows = last_rows(on_s3)
    failed = {key: row["error"] for key, row in rows.items() if row["status"] != "done"}
    assert failed.keys() == {"05-poison.png"}
    assert "ended its worker" in failed["05-poison.png"]
    assert on_s3.statuses()["05-poison.png"] == "failed_before"


class Small(Predictor):
    """A GPU with room for two images."""

    batches: list[int]

    def predict_batch(self, images: Any, *, confidence: bool = False) -> list[Prediction]:
        if len(images) > 2 or max(image.shape[0] for image in images) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(images))
        return super().predict_batch(images, confidence=confidence)


def test_promise_20_out_of_memory_halves_the_batch_and_goes_on(on_s3: Bench) -> None:
    model = Model.load(save_model(on_s3.model))
    predictor = Small(model)
    predictor.batches = []

    images: list[Array] = [decode_image(image_bytes(seed)) for seed in range(8)]
    predictions = predictor.predict_many(images, 8)
    assert predictor.batches == [2, 2, 2, 2]
    whole = Predictor(model)
    for image, prediction in zip(images, predictions, strict=True):
        assert isinstance(prediction, Prediction)
        assert (prediction.mask == whole.predict(image)).all()
    (error,) = predictor.predict_many([decode_image(image_bytes(0, (120, 56)))])
    assert isinstance(error, MemoryError)
    assert failure(error).status == "failed"
    assert "does not fit in memory, or in that of the GPU" in (failure(error).error or "")


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of its own at `folder`, of 64 kB."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("full", ["the output", "the driver's temporary folder"])
def test_promise_21_a_full_disk_ends_the_run_clearly_and_the_same_command_goes_on(
    tmp_path: Path, one_ray: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    bench = Bench(str(tmp_path / "place"))
    disk = Path(bench.masks) if full == "the output" else tmp_path / "temporary"
    with small_disk(disk):
        save_model(bench.model)
        fill(bench.images, [f"{i:02}.png" for i in range(40)])
        with monkeypatch.context() as patch:
            if full != "the output":
                patch.setattr("tempfile.tempdir", str(disk))
                (disk / "ballast").write_bytes(bytes(1 << 16))
            places = ["--input", bench.images, "--output", bench.masks, "--model", bench.model]
            assert run(segment, SegmentSettings, places) == 1
        said = capsys.readouterr().err
        assert os.strerror(errno.ENOSPC) in said
        assert said.count("\n") == 1
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert segment(bench.settings()) == 0
        assert {row["status"] for row in last_rows(bench).values()} <= {"done", "unchanged"}
        assert len(bench.all_masks()) == 40


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_promise_27_a_pickle_in_place_of_a_model_is_refused_unread(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    flags = ["--input", bench.images, "--output", bench.masks, "--model", bench.model]
    canary, path = Canary(tmp_path / "hatched"), Path(bench.model) / name
    for write in (lambda: path.write_bytes(pickle.dumps(canary)), lambda: torch.save(canary, path)):
        write()
        assert run(segment, SegmentSettings, flags) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: --model")
        assert said.count("\n") == 1
        assert not (tmp_path / "hatched").exists()


def test_a_mask_that_an_unrecorded_run_left_is_made_anew(on_s3: Bench, one_ray: None) -> None:
    save_model(on_s3.model)
    fill(on_s3.images, ["a.png", "b.png"])
    settings = on_s3.settings()
    lease = acquire(settings.output, LEASE_KEY, run="run", lifetime=60, fence=1)
    assert lease.conditional
    open_store(on_s3.masks).put("a.png.png", b"of a run that was killed")
    lease.release()
    assert segment(settings) == 0
    assert on_s3.all_masks() == clean_masks(on_s3)
