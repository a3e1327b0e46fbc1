"""The driver of the segmentation job, by itself."""

import subprocess
import sys

import pytest

from unet.runtime import telemetry
from unet.segment.item import Item, Outcome
from unet.segment.job import record_metrics


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
