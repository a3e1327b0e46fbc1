"""Jobs submitted to a Ray cluster with token authentication, from and to S3."""

import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster.cluster import CANARY, Cluster, ray_cluster
from tests.jobs.bench import Bench, fill, save_model
from tests.jobs.training import training_flags
from tests.processes import command_line, descendants, processes_naming
from tests.servers.ports import free_port
from unet.storage import store
from unet.storage.store import open_store
from unet.train.journal import read_entries


@pytest.fixture(scope="module")
def cluster(s3: str) -> Iterator[Cluster]:
    with ray_cluster() as made:
        yield made


def assert_no_secret(cluster: Cluster, bucket: str, ended: "subprocess.CompletedProcess[str]") -> None:
    """Assert that the secret key of the machines is in no object, log of Ray, metric or record of a job."""
    written = [store.read(f"{bucket}/{item.key}") for page in open_store(bucket).list() for item in page]
    logs = [file.read_bytes() for file in cluster.folder.glob("session_*/logs/**/*") if file.is_file()]
    assert len(logs) > 5
    assert len(written) > 5
    with urllib.request.urlopen(cluster.metrics, timeout=10) as answer:
        metrics = answer.read()
    records = cluster.ray("job", "list", "--address", cluster.dashboard).stdout
    assert b"ray_" in metrics
    assert "jobs/" in records
    for data in (*written, *logs, metrics, records.encode(), ended.stdout.encode(), ended.stderr.encode()):
        assert CANARY.encode() not in data


@pytest.mark.slow
def test_a_submitted_run_trains_from_and_to_s3_and_promise_25_no_secret_is_written(
    cluster: Cluster, boxes: Path, bucket: str
) -> None:
    for file in boxes.rglob("*.png"):
        store.write(f"{bucket}/boxes/{file.relative_to(boxes)}", file.read_bytes())
    shutil.copy(boxes / "classes.csv", cluster.folder / "classes.csv")
    arguments = training_flags(f"{bucket}/boxes", f"{bucket}/runs", classes=cluster.folder / "classes.csv")
    ended = cluster.submit("jobs/train.py", *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "images/s" in ended.stdout
    assert "epoch 3/3" in ended.stdout
    assert len(read_entries(f"{bucket}/runs/run")) == 3
    assert store.exists(f"{bucket}/runs/run/report/index.html")
    assert_no_secret(cluster, bucket, ended)


@pytest.mark.slow
def test_a_finished_run_that_is_submitted_again_says_so(cluster: Cluster, boxes: Path, bucket: str) -> None:
    for file in boxes.rglob("*.png"):
        store.write(f"{bucket}/boxes/{file.relative_to(boxes)}", file.read_bytes())
    shutil.copy(boxes / "classes.csv", cluster.folder / "classes.csv")
    arguments = training_flags(f"{bucket}/boxes", f"{bucket}/runs", classes=cluster.folder / "classes.csv")
    assert cluster.submit("jobs/train.py", *arguments).returncode == 0
    again = cluster.submit("jobs/train.py", *arguments)
    assert "this run is finished" in again.stdout
    refused = cluster.submit("jobs/train.py", *arguments, "--lr", "9")
    assert refused.returncode == 1  # of `ray job submit`, whatever the driver's is
    assert "lr 0.008 -> 9" in refused.stdout


def test_a_submitted_run_segments_a_bucket_and_promise_25_no_secret_is_written(cluster: Cluster, bucket: str) -> None:
    bench = Bench(bucket)
    save_model(bench.model)
    fill(bench.images, [f"{i:02}.png" for i in range(20)])
    places = ["--input", bench.images, "--output", bench.masks, "--model", bench.model]
    ended = cluster.submit("jobs/segment.py", *places)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "20 done" in ended.stdout
    assert len(bench.all_masks()) == 20
    assert_no_secret(cluster, bucket, ended)


@pytest.mark.slow
def test_a_submitted_run_without_flags_trains_on_the_sample_set_until_it_is_stopped(cluster: Cluster) -> None:
    submitted = cluster.submit("jobs/train.py", options=("--no-wait", "--submission-id", "plain"))
    assert submitted.returncode == 0, submitted.stderr
    where = ("--address", cluster.dashboard)
    deadline = time.monotonic() + 120
    while "step 1/" not in (log := cluster.ray("job", "logs", *where, "plain").stdout):
        assert time.monotonic() < deadline, log
        time.sleep(2)
    assert "no --data: training on the generated sample set" in log
    assert "Ray removes" in log
    assert cluster.ray("job", "stop", *where, "plain").returncode == 0
    assert "was stopped" in cluster.ray("job", "status", *where, "plain").stdout
    log = cluster.ray("job", "logs", *where, "plain").stdout
    assert "stopped by SIGTERM; the same command goes on" in log


@pytest.mark.slow
def test_an_elastic_run_goes_on_with_the_worker_that_is_left(cluster: Cluster, boxes: Path, bucket: str) -> None:
    """A second raylet stands for a machine, which is lost in the middle of a run of `1:2` workers."""
    for file in boxes.rglob("*.png"):
        store.write(f"{bucket}/boxes/{file.relative_to(boxes)}", file.read_bytes())
    shutil.copy(boxes / "classes.csv", cluster.folder / "classes.csv")
    member = ["start", f"--address={cluster.address}", "--num-cpus=2", "--resources", '{"second": 1}']
    member.append(f"--dashboard-agent-listen-port={free_port()}")
    before = set(raylets(cluster.folder))
    assert cluster.ray(*member).returncode == 0
    (second,) = set(raylets(cluster.folder)) - before
    deadline = time.monotonic() + 60
    while "4.0 CPU" not in cluster.ray("status", f"--address={cluster.address}").stdout:  # the head knows of it later
        assert time.monotonic() < deadline
        time.sleep(0.5)
    flags = {"workers": "1:2", "steps_per_epoch": 60, "batch_size": 5}
    arguments = training_flags(f"{bucket}/boxes", f"{bucket}/runs", classes=cluster.folder / "classes.csv", **flags)
    where = ("--address", cluster.dashboard)
    submitted = cluster.submit("jobs/train.py", *arguments, options=("--no-wait", "--submission-id", "elastic"))
    assert submitted.returncode == 0, submitted.stderr
    deadline = time.monotonic() + 120
    while not any("step-" in name for name in store.list_files(f"{bucket}/runs")):
        assert time.monotonic() < deadline, cluster.ray("job", "logs", *where, "elastic").stdout
        time.sleep(0.2)
    for process in [second, *descendants(second)]:
        with suppress(OSError):
            os.kill(process, 9)
    while not store.exists(f"{bucket}/runs/run/report/index.html"):
        assert time.monotonic() < deadline + 60, cluster.ray("job", "logs", *where, "elastic").stdout
        time.sleep(0.5)
    assert [entry["step"] for entry in read_entries(f"{bucket}/runs/run")] == [60, 120, 180]
    log = cluster.ray("job", "logs", *where, "elastic").stdout
    assert "going on from the last checkpoint" in log
    assert "going on after step" in log


def raylets(folder: Path) -> list[int]:
    found = processes_naming(folder)
    return [process for process in found if command_line(process).split(b"\0")[0].endswith(b"/raylet")]
