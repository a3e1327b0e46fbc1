"""The driver of the segmentation job, by itself."""

import pytest

from unet.runtime import telemetry
from unet.segment.chunk import Chunk, rows_table
from unet.segment.job import _record_metrics


def test_a_chunk_counts_its_objects_its_bytes_and_the_mean_seconds_of_each_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[object] = []
    monkeypatch.setattr(telemetry, "record_objects", lambda *values: recorded.extend(values))
    rows = rows_table({"key": ["a", "b", "c"], "size": [10, 20, 40], "status": ["done", "done", "failed"]})
    _record_metrics(Chunk(rows, stage_seconds={"fetch": 0.5, "predict": 3.0}), "out")
    assert recorded == [{"done": 2, "failed": 1}, 30, {"fetch": 0.25, "predict": 1.5}, "out"]
