"""The segmentation job over very many objects, made up by a stub: what grows with them, and how fast it goes."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pytest

from tests.conftest import ROOT
from tests.jobs.bench import save_model
from tests.servers.s3 import stub
from tests.servers.stub import BODY, ETAG, image_key
from unet.runtime.pipeline import pack
from unet.segment.job import _prepare
from unet.segment.listing import MAX_CHUNK, list_chunks
from unet.segment.settings import SegmentSettings
from unet.storage.store import open_store

INPUT, OUTPUT, MODEL = "s3://stub/images", "s3://stub/masks", "s3://stub/model"

BYTES_A_KEY, SECONDS_TO_FIRST, KEYS_A_SECOND = 150, 20, 20_000


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


def record_all(keys: int) -> None:
    """A ledger in which every image of the stub is done."""
    model, spec = _prepare(settings())
    assert model.digest
    for first in range(0, keys, 100_000):
        numbers = range(first, min(first + 100_000, keys))
        same = {"etag": ETAG, "size": len(BODY), "fingerprint": spec.fingerprint, "status": "done"}
        columns: dict[str, Any] = {name: [value] * len(numbers) for name, value in same.items()}
        columns["key"] = [image_key(number) for number in numbers]
        spec.ledger.append(pa.table(columns), spec.fence)


class Memory(threading.Thread):
    """The highest private memory [bytes] of the driver and of the process that lists, as long as the driver lives."""

    def __init__(self, driver: int) -> None:
        super().__init__(daemon=True)
        self.driver = driver
        self.peaks: defaultdict[str, int] = defaultdict(int)

    def run(self) -> None:
        lister = None
        while Path(f"/proc/{self.driver}/exe").exists():
            lister = lister or self._lister()
            for _ in range(50):  # a peak may be as short as the making of a report
                self._note("driver", self.driver)
                if lister is not None:
                    self._note("lister", lister)
                time.sleep(0.01)

    def _lister(self) -> int | None:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if b"(List)" in folder.joinpath("cmdline").read_bytes():
                    return int(folder.name)
        return None

    def _note(self, name: str, process: int) -> None:
        """RssAnon, since what is mapped of Ray's object store is the store's."""
        with suppress(OSError):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            values = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Vm", "Rss"))}
            for kind in ("RssAnon", "VmHWM", "VmRSS"):
                self.peaks[f"{name} {kind}"] = max(self.peaks[f"{name} {kind}"], values.get(kind, 0) * 1024)


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


def assert_small_growth(few: dict[str, int], many: dict[str, int], keys: int) -> None:
    growth = {name: (many[name] - few[name]) / keys for name in few}
    print("bytes a key:", {name: round(value) for name, value in growth.items()})
    assert max(growth["driver RssAnon"], growth["lister RssAnon"]) <= BYTES_A_KEY


@pytest.mark.slow
def test_promise_23_memory_grows_by_at_most_150_bytes_a_key(tmp_path: Path) -> None:
    peaks = []
    for keys in (10_000, 100_000):
        with stub(keys) as url:
            save_model(MODEL)
            peaks.append(run_job(tmp_path / f"{keys}.log"))
            assert summary()["counts"] == {"done": keys}
            assert stats(url)["masks"] == keys
    assert_small_growth(peaks[0], peaks[1], 90_000)


@pytest.mark.slow
def test_promise_23_the_first_of_a_million_masks_comes_within_20_seconds(tmp_path: Path) -> None:
    with stub(1_000_000) as url:
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
def test_promise_23_a_run_over_a_million_recorded_objects_passes_20_000_a_second(tmp_path: Path) -> None:
    peaks = []
    for keys in (100_000, 1_000_000):
        with stub(keys) as url:
            save_model(MODEL)
            record_all(keys)
            peaks.append(run_job(tmp_path / f"{keys}.log"))
            report, asked = summary(), stats(url)
        assert report["counts"] == {"unchanged": keys}
        assert (asked["images"], asked["masks"]) == (0, 0)
    assert report["listed"] / report["seconds"] >= KEYS_A_SECOND
    assert_small_growth(peaks[0], peaks[1], 900_000)


def test_what_travels_is_as_small_as_its_rows() -> None:
    with stub(5000):
        save_model(MODEL)
        _, spec = _prepare(settings())
        parts = list(list_chunks(spec))
        assert sum(len(part.rows) for part in parts) == 5000
        assert max(len(pack(part)["content"][0]) for part in parts) < 2000 + 150 * MAX_CHUNK
        record_all(5000)
        assert [len(part.rows) for part in list_chunks(spec)] == [5000, 0]  # the last has counts alone
