"""The driver of the segmentation job, by itself."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.bench import Bench, fill, save_model
from unet.runtime import telemetry
from unet.segment.item import Item, Outcome
from unet.segment.job import _prepare, record_metrics
from unet.segment.lease import acquire
from unet.segment.run_spec import LEASE_KEY
from unet.segment.worker import SegmentWorker
from unet.settings import RequestError


def test_a_chunk_counts_its_objects_its_bytes_and_the_mean_seconds_of_each_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[object] = []
    monkeypatch.setattr(telemetry, "record_objects", lambda *values: recorded.extend(values))
    stages = {"fetch": 0.25, "predict": 1.5}
    done = [(Item(key, "", size), Outcome("done", stage_seconds=stages)) for key, size in (("a", 10), ("b", 20))]
    record_metrics([*done, (Item("c", "", 40), Outcome("failed"))], "out")
    assert recorded == [{"done": 2, "failed": 1}, 30, {"fetch": 0.25, "decode": 0, "predict": 1.5, "write": 0}, "out"]


def test_arrow_allocates_by_malloc_in_the_driver() -> None:
    """Its own pool keeps what was freed, and its compute functions take the one that is named before it is imported."""
    code = "import unet.segment.job, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    environment = {"PATH": ""}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "system\n"


@pytest.mark.parametrize(("missing", "flag"), [("input", "--input"), ("output", "--output")])
def test_a_machine_that_joins_late_and_sees_no_local_folder_is_named(tmp_path: Path, missing: str, flag: str) -> None:
    """Its objects are neither deleted, nor has another run taken the output over."""
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    model, spec = _prepare(bench.settings())
    acquire(bench.masks, LEASE_KEY, run=spec.run, lifetime=60, fence=1)
    assert SegmentWorker(spec, model).exchange([], 60.0) == []
    changed: Any = {missing: str(tmp_path / "unseen")}
    elsewhere = replace(spec, settings=replace(spec.settings, **changed))
    with pytest.raises(RequestError, match=rf"^{flag} .*unseen.*: machine .* does not see this; give s3://"):
        SegmentWorker(elsewhere, model).exchange([(0, Item("a.png", "", 1))], 60.0)
