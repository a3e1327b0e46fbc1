"""Whole jobs on a cluster of several hosts that share nothing but the network and an S3 server."""

import io
import json
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.hosts.network import CLIENT, DASHBOARD, GCS, Hosts, buckets, network
from tests.jobs.bench import Bench, fill, image_bytes, save_model
from tests.jobs.training import training_flags
from tests.servers.proxy import Proxy
from unet.data.settings import SetSettings
from unet.evaluate.job import evaluate
from unet.evaluate.settings import EvaluateSettings
from unet.segment.recorder import PART_SECONDS
from unet.storage import store
from unet.storage.objects import join_uri
from unet.storage.store import open_store
from unet.train.journal import read_entries

pytestmark = pytest.mark.slow


@pytest.fixture
def bridge(s3: str) -> Iterator[tuple[Hosts, Proxy]]:
    """A network without hosts yet, and the proxy between it and the S3 server of the tests."""
    with network() as made, buckets(made) as proxy:
        yield made, proxy


@pytest.fixture
def hosts(bridge: tuple[Hosts, Proxy]) -> Hosts:
    """A head without CPUs and two hosts of one CPU each."""
    made, _ = bridge
    for processors in (0, 1, 1):
        made.add(f"--num-cpus={processors}")
    return made


@pytest.fixture
def proxy(bridge: tuple[Hosts, Proxy]) -> Proxy:
    return bridge[1]


def wait_for(ready: Callable[[], object], seconds: float, log: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, log()
        time.sleep(0.3)


def put_set(boxes: Path, bucket: str) -> None:
    for file in boxes.rglob("*.png"):
        store.write(f"{bucket}/boxes/{file.relative_to(boxes)}", file.read_bytes())


LABELS = "index,name,red,green,blue\n0,ground,0,0,0\n1,box,255,0,0\n"


@pytest.fixture
def classes() -> Iterator[str]:
    """A label file in the working directory, which travels with a job."""
    file = ROOT / "hosts-classes.csv"
    file.write_text(LABELS)
    yield file.name
    file.unlink()


def test_train_segment_and_evaluate_on_three_hosts_give_what_one_machine_gives(
    hosts: Hosts, boxes: Path, bucket: str, classes: str, tmp_path: Path, one_ray: None
) -> None:
    put_set(boxes, bucket)
    arguments = training_flags(f"{bucket}/boxes", f"{bucket}/runs", classes=classes)
    trained = hosts.submit("jobs/train.py", *arguments)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    bench = Bench(bucket)
    bench.model = f"{bucket}/runs/run/model"
    fill(bench.images, [f"{i:02}.png" for i in range(20)])
    segmented = hosts.submit(
        "jobs/segment.py", "--input", bench.images, "--output", bench.masks, "--model", bench.model, "--workers", "2"
    )
    assert segmented.returncode == 0, segmented.stdout + segmented.stderr
    masks = bench.all_masks()
    bench.masks += "-here"
    bench.run()
    assert masks == bench.all_masks()
    scores = f"{bucket}/scores"
    flags = ["--data", f"{bucket}/boxes", "--model", bench.model, "--output", scores]
    evaluated = hosts.submit("jobs/evaluate.py", *flags)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    here = str(tmp_path / "scores")
    assert evaluate(EvaluateSettings(data=SetSettings(data=str(boxes)), model=bench.model, output=here)) == 0
    there, ours = (json.loads(store.read(f"{place}/scores.json")) for place in (scores, here))
    for name in ("confusion", "miou", "classes", "images"):
        assert there[name] == ours[name]
    written = [store.read(f"{bucket}/{item.key}") for page in open_store(bucket).list() for item in page]
    for data in (*written, *hosts.logs(), trained.stdout.encode(), segmented.stdout.encode()):
        assert hosts.canary.encode() not in data


def begin_to_train(hosts: Hosts, boxes: Path, bucket: str, **flags: object) -> Callable[[], str]:
    """Submits the job; returns how to read its log, once a checkpoint is there."""
    put_set(boxes, bucket)
    arguments = training_flags(f"{bucket}/boxes", f"{bucket}/runs", batch_size=4, **flags)
    begun = hosts.submit("jobs/train.py", *arguments, options=("--no-wait", "--submission-id", "lost"))
    assert begun.returncode == 0, begun.stdout + begun.stderr

    def log() -> str:
        return hosts.log("lost")

    wait_for(lambda: any("step-" in name for name in store.list_files(f"{bucket}/runs")), 180, log)
    return log


def test_training_goes_on_with_a_host_that_joins_after_one_is_killed(
    hosts: Hosts, boxes: Path, bucket: str, classes: str
) -> None:
    log = begin_to_train(hosts, boxes, bucket, classes=classes, workers=2, steps_per_epoch=300)
    hosts.hosts[-1].kill()
    hosts.add("--num-cpus=1")
    lost = time.monotonic()
    wait_for(lambda: re.search("going on after step .* 2 workers", log()), 120, log)
    print(f"went on after {time.monotonic() - lost:.0f} s")
    wait_for(lambda: store.exists(f"{bucket}/runs/run/report/index.html"), 240, log)
    assert [entry["step"] for entry in read_entries(f"{bucket}/runs/run")] == [300, 600, 900]


def test_elastic_training_goes_on_without_a_host_that_is_cut_off_and_grows_when_it_is_back(
    hosts: Hosts, boxes: Path, bucket: str, classes: str
) -> None:
    log = begin_to_train(hosts, boxes, bucket, classes=classes, workers="1:2", steps_per_epoch=30_000)
    victim = hosts.hosts[-1]
    victim.cut()
    lost = time.monotonic()
    wait_for(lambda: re.search("going on after step .* 1 worker$", log(), re.MULTILINE), 120, log)
    print(f"went on after {time.monotonic() - lost:.0f} s")
    hosts.rejoin(victim, "--num-cpus=1")
    wait_for(lambda: re.search("going on after step .* 2 workers$", log(), re.MULTILINE), 180, log)


KEYS = [f"{i:03}.png" for i in range(300)]


@pytest.fixture
def bench(bucket: str) -> Bench:
    made = Bench(bucket)
    save_model(made.model, width=16)
    fill(made.images, KEYS)
    return made


def begin_to_segment(hosts: Hosts, bench: Bench, name: str) -> None:
    flags = ["--input", bench.images, "--output", bench.masks, "--model", bench.model, "--workers", "1:2"]
    begun = hosts.submit("jobs/segment.py", *flags, "--lease", "4", options=("--no-wait", "--submission-id", name))
    assert begun.returncode == 0, begun.stdout + begun.stderr


def rows_at_the_end(hosts: Hosts, bench: Bench, name: str) -> list[dict[str, Any]]:
    """The report of the run that comes to its end."""

    def summaries() -> list[str]:
        return [file for file in store.list_files(bench.masks) if file.endswith("summary.json")]

    wait_for(summaries, 240, lambda: hosts.log(name))
    (summary,) = summaries()
    report = store.read(join_uri(bench.masks, summary.replace("summary.json", "report.parquet")))
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(report)).to_pylist()
    assert sorted(row["key"] for row in rows) == KEYS
    masks = bench.all_masks()
    bench.masks += "-here"
    bench.run()
    assert masks == bench.all_masks()
    return rows


@pytest.mark.parametrize("fault", ["cut", "killed"])
def test_segmenting_goes_on_after_a_host_is_lost(hosts: Hosts, bench: Bench, fault: str) -> None:
    begin_to_segment(hosts, bench, "lost")
    wait_for(lambda: len(bench.mask_keys()) > 40, 120, lambda: hosts.log("lost"))
    victim = hosts.hosts[-1]
    victim.cut() if fault == "cut" else victim.kill()
    assert {row["status"] for row in rows_at_the_end(hosts, bench, "lost")} == {"done"}


def test_segmenting_goes_on_on_another_cluster_after_the_head_is_lost(hosts: Hosts, proxy: Proxy, bench: Bench) -> None:
    begin_to_segment(hosts, bench, "lost")
    wait_for(lambda: len(bench.mask_keys()) > 100, 120, lambda: hosts.log("lost"))
    hosts.lose_head()
    lost = time.monotonic()
    for processors in (0, 1, 1):
        hosts.add(f"--num-cpus={processors}")
    so_far = [*zip(proxy.requests, proxy.times, strict=True)]
    masks = [at for (verb, path), at in so_far if verb == "PUT" and path.endswith(".png.png")]
    late = sum(at > lost - 2 * PART_SECONDS[0] for at in masks)
    begin_to_segment(hosts, bench, "again")
    rows = rows_at_the_end(hosts, bench, "again")
    assert {row["status"] for row in rows} == {"done", "unchanged"}
    read = Counter(path for verb, path in proxy.requests if verb == "GET" and "/images/" in path)
    again = sum(count > 1 for count in read.values())
    print(f"{again} images were read again, {late} masks were written late")
    assert again <= late + 2 * 2 * 9  # two workers with two chunks each, of a 32nd of what is listed


def test_a_folder_that_only_one_host_sees_is_refused(hosts: Hosts, bucket: str) -> None:
    bench = Bench(bucket)
    save_model(bench.model)
    images = hosts.hosts[0].disk / "images"
    images.mkdir()
    (images / "a.png").write_bytes(image_bytes(0))
    flags = ["--input", "/tmp/images", "--output", bench.masks, "--model", bench.model]
    ended = hosts.submit("jobs/segment.py", *flags)
    assert ended.returncode != 0
    assert "error: --input /tmp/images: machine" in ended.stdout + ended.stderr
    assert not bench.mask_keys()


def test_a_client_without_the_token_is_refused_at_every_port(hosts: Hosts) -> None:
    without = {name: value for name, value in hosts.environment.items() if not name.startswith("RAY_AUTH")}
    head = hosts.hosts[0]
    stranger = replace(hosts, environment=without)
    wait_for(lambda: stranger_sees(head.address, DASHBOARD), 60, lambda: "no dashboard")
    refused = stranger.ray("job", "list", "--address", hosts.dashboard)
    assert refused.returncode != 0
    code = "import ray, sys; ray.init(address=sys.argv[1]); print(ray.nodes())"
    for address in (f"{head.address}:{GCS}", f"ray://{head.address}:{CLIENT}"):
        asked = head.run(
            "env", "-u", "RAY_AUTH_TOKEN", "-u", "RAY_AUTH_MODE", sys.executable, "-c", code, address, timeout=120
        )
        assert asked.returncode != 0, f"{address} let a stranger in: {asked.stdout}"


def stranger_sees(address: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((address, port)) == 0
