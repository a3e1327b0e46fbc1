"""The segmentation job over very many objects, made up by a stub: what grows with them, and how fast it goes."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pytest

from tests.conftest import ROOT
from tests.jobs.bench import save_model
from tests.servers.s3 import stub
from tests.servers.stub import BODY, ETAG, NAMES, image_key
from unet.segment.compaction import compact
from unet.segment.job import _prepare
from unet.segment.listing import Listing
from unet.segment.settings import SegmentSettings
from unet.storage.store import open_store

INPUT, OUTPUT, MODEL = "s3://stub/images", "s3://stub/masks", "s3://stub/model"

BYTES_A_KEY, SECONDS_TO_FIRST, KEYS_A_SECOND, MAX_MEMORY = 90, 20, 20_000, 1.2e9


@pytest.fixture(autouse=True)
def own_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job starts a Ray of its own, whatever else runs here."""
    monkeypatch.setenv("RAY_ADDRESS", "local")


def stats(url: str) -> dict[str, Any]:
    """What the stub was asked for."""
    with urllib.request.urlopen(f"{url}/stats", timeout=10) as answer:
        return dict(json.load(answer))


def settings() -> SegmentSettings:
    return SegmentSettings(input=INPUT, output=OUTPUT, model=MODEL)


def start_job(log: IO[bytes]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "jobs/segment.py", "--input", INPUT, "--output", OUTPUT, "--model", MODEL]
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def summary() -> dict[str, Any]:
    """Of the latest run."""
    store = open_store(OUTPUT)
    runs = [item.key for page in store.list() for item in page if item.key.endswith("summary.json")]
    return dict(json.loads(store.get(max(runs))))


def record_all(keys: int, generations: int = 1, names: str = "flat") -> None:
    """A ledger in which every image of the stub is done, by several models one after another."""
    _, spec = _prepare(settings())
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"etag": ETAG, "size": len(BODY), "status": "done", "outputs": "mask", "input": INPUT}
    columns |= {"height": 360, "width": 480, "channels": 3}
    for generation in range(generations):
        fence = spec.fence + generation
        columns["fingerprint"] = spec.fingerprint if generation == generations - 1 else f"{generation}"
        for first in range(0, keys, 100_000):
            numbers = range(first, min(first + 100_000, keys))
            rows = {name: pa.repeat(value, len(numbers)) for name, value in columns.items()}
            masks = [rng.bytes(16).hex() for _ in numbers]  # as random as etags are
            rows |= {"key": pa.array([image_key(number, names) for number in numbers]), "mask_etag": pa.array(masks)}
            shares = rng.dirichlet(np.ones(len(spec.classes)), len(numbers)).astype(np.float32)
            rows |= {
                "confidence": shares.max(1),
                "unsure": shares.min(1),
                "shares": pa.FixedSizeListArray.from_arrays(shares.reshape(-1), len(spec.classes)).cast(
                    pa.list_(pa.float32())
                ),
            }
            spec.ledger.append(pa.table(rows), fence)
        compact(spec.ledger, fence)


class Memory(threading.Thread):
    """The highest memory [bytes] of the driver, which lists too, as long as it lives."""

    def __init__(self, driver: int) -> None:
        super().__init__(daemon=True)
        self.driver = driver
        self.peaks: dict[str, int] = {}

    def run(self) -> None:
        while Path(f"/proc/{self.driver}/exe").exists():
            with suppress(OSError):
                lines = Path(f"/proc/{self.driver}/status").read_text().splitlines()
                values = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if "kB" in line}
                # RssAnon, since what is mapped of Ray's object store is the store's.
                self.peaks = {kind: max(self.peaks.get(kind, 0), values.get(kind, 0)) for kind in ("RssAnon", "VmHWM")}
            time.sleep(0.01)  # a peak may be as short as the making of a report


def run_job(log: Path) -> dict[str, int]:
    """Runs the job to its end; returns the memory it took."""
    with log.open("wb") as file, start_job(file) as job:
        memory = Memory(job.pid)
        memory.start()
        code = job.wait()
    memory.join()
    assert code == 0, log.read_text()
    report = summary()
    rate, load = report["listed"] / report["seconds"], os.getloadavg()[0]
    print(f"{report['counts']}: {rate:,.0f} keys/s, load {load:.1f}, {dict(memory.peaks)}")
    return memory.peaks


def growth(few: dict[str, int], many: dict[str, int], keys: int) -> float:
    """Bytes a key."""
    value = (many["RssAnon"] - few["RssAnon"]) / keys
    print(f"{value:.0f} bytes a key (goal 40)")
    return value


@pytest.mark.slow
def test_promise_23_memory_grows_by_at_most_90_bytes_a_key(tmp_path: Path) -> None:
    peaks = []
    for keys in (10_000, 100_000):
        with stub(keys) as url:
            save_model(MODEL)
            peaks.append(run_job(tmp_path / f"{keys}.log"))
            assert summary()["counts"] == {"done": keys}
            assert stats(url)["masks"] == keys
    assert growth(peaks[0], peaks[1], 90_000) <= BYTES_A_KEY


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "latency"), [(1_000_000, 0.0), (10_000_000, 0.1)])
def test_promise_23_the_first_of_millions_of_masks_comes_within_20_seconds(
    tmp_path: Path, keys: int, latency: float
) -> None:
    with stub(keys, latency=latency) as url:
        save_model(MODEL)
        with (tmp_path / "log").open("wb") as file:
            began = time.time()
            with start_job(file) as job:
                try:
                    while (first := stats(url)["first_mask"]) is None and time.time() < began + 3 * SECONDS_TO_FIRST:
                        time.sleep(0.2)
                finally:
                    job.terminate()
    assert first is not None
    print(f"first mask after {first - began:.1f} s; load {os.getloadavg()[0]:.1f}")
    assert first - began <= SECONDS_TO_FIRST


@pytest.mark.slow
@pytest.mark.parametrize("keys", [1_000_000, pytest.param(10_000_000, id="ten million")])
def test_promise_37_recorded_objects_pass_in_constant_memory(tmp_path: Path, keys: int) -> None:
    with stub(keys) as url:
        save_model(MODEL)
        record_all(keys, generations=2)
        parts = [item for page in open_store(f"{OUTPUT}/_segment/ledger").list() for item in page]
        print(f"ledger: {sum(part.size for part in parts) / keys:.0f} bytes a key")
        memory = run_job(tmp_path / "log")
        report, asked = summary(), stats(url)
    assert report["counts"] == {"unchanged": keys}
    assert (asked["images"], asked["masks"]) == (0, 0)
    assert report["listed"] / report["seconds"] >= KEYS_A_SECOND
    assert memory["VmHWM"] <= MAX_MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("names", NAMES)
def test_promise_37_recorded_objects_are_listed_side_by_side_however_they_are_named(tmp_path: Path, names: str) -> None:
    keys = 300_000
    with stub(keys, names) as url:
        save_model(MODEL)
        record_all(keys, names=names)
        _, spec = _prepare(settings())
        found = [key for table in Listing(spec).tables() for key in table["key"].to_pylist()]
        assert stats(url)["lists"] > keys / 1000 + 1
    assert len(found) == len(set(found)) == keys
    assert set(found) == {image_key(number, names) for number in range(keys)}


@pytest.mark.slow
def test_promise_37_ten_million_recorded_objects_pass_at_100_ms_a_page(tmp_path: Path) -> None:
    keys = 10_000_000
    with stub(keys, latency=0.1) as url:
        save_model(MODEL)
        record_all(keys)
        memory = run_job(tmp_path / "log")
        report, asked = summary(), stats(url)
    assert report["counts"] == {"unchanged": keys}
    assert (asked["images"], asked["masks"]) == (0, 0)
    assert memory["VmHWM"] <= 1.5e9


@pytest.mark.slow
def test_promise_37_the_ledger_of_four_models_has_one_row_a_key_of_80_bytes(tmp_path: Path) -> None:
    keys = 500_000
    with stub(keys):
        save_model(MODEL)
        record_all(keys, generations=4)
        _, spec = _prepare(settings())
        sizes = [item.size for page in spec.ledger.store.list() for item in page]
        rows = sum(map(len, spec.ledger.rows()))
        ranges = spec.ledger.contents().ranges
    print(f"{sum(sizes) / keys:.0f} bytes a key in {len(ranges)} parts")
    assert rows == sum(item.rows for item in ranges) == keys
    assert sum(sizes) <= 80 * keys
