"""What runs tell: the right numbers of a chunk, and the names that Prometheus really sees."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import ray_cluster
from tests.conftest import ROOT
from unet.runtime import telemetry

Told = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """What is recorded, in place of Ray's metrics."""
    found: Told = []

    class Heard:
        def __init__(self, name: str, *_: Any) -> None:
            self.name = name

        def inc(self, value: float, tags: dict[str, str]) -> None:
            found.append((self.name, value, tags))

        set = observe = inc

    telemetry._metric.cache_clear()
    monkeypatch.setattr("unet.runtime.telemetry.ray.is_initialized", lambda: True)
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"unet.runtime.telemetry.metrics.{kind}", Heard)
    yield found
    telemetry._metric.cache_clear()


def test_objects_are_counted_by_status_with_the_bytes_and_seconds_of_those_done(told: Told) -> None:
    telemetry.record_objects({"done": 2, "failed": 1}, 30, {"fetch": 0.25, "predict": 1.5}, "out")
    assert told == [
        ("unet_segment_objects", 2, {"output": "out", "status": "done"}),
        ("unet_segment_objects", 1, {"output": "out", "status": "failed"}),
        ("unet_segment_bytes", 30, {"output": "out"}),
        ("unet_segment_stage_seconds", 0.25, {"output": "out", "stage": "fetch"}),
        ("unet_segment_stage_seconds", 1.5, {"output": "out", "stage": "predict"}),
    ]


def test_only_an_end_with_code_0_is_a_success(told: Told) -> None:
    for code in (3, 0):
        telemetry.record_end(code, "out")
    assert told[:2] == [
        ("unet_segment_runs", 1, {"output": "out", "code": "3"}),
        ("unet_segment_runs", 1, {"output": "out", "code": "0"}),
    ]
    ((name, value, _),) = told[2:]
    assert name == "unet_segment_success_time_seconds"
    assert abs(value - time.time()) < 60


def test_drift_is_told_by_channel_and_what_is_not_known_is_left_out(told: Told) -> None:
    telemetry.record_drift({"red": 0.5, "classes": 0.1}, None, "out")
    telemetry.record_drifted(["red"], "out")
    assert told == [
        ("unet_segment_drift_psi", 0.5, {"output": "out", "of": "red"}),
        ("unet_segment_drift_psi", 0.1, {"output": "out", "of": "classes"}),
        ("unet_segment_drifted_runs", 1, {"output": "out", "of": "red"}),
    ]


def test_a_run_says_again_and_again_that_it_goes_on(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "REFRESH_SECONDS", 0.01)
    with telemetry.running_gauge(telemetry.TRAINING, run="street"):
        time.sleep(0.2)
    count = len(told)
    assert count > 2
    assert set(map(str, told)) == {str(("unet_train_running", 1, {"run": "street"}))}
    time.sleep(0.1)
    assert len(told) == count


def test_an_epoch_tells_its_scores_and_leaves_out_what_it_has_none_of(told: Told) -> None:
    entry = {"epoch": 2, "images_per_second": 5.0, "val_loss": 0.5, "val_pixel_accuracy": 0.9, "val_miou": None}
    telemetry.record_epoch(entry, "street")
    assert {name: value for name, value, _ in told} == {
        "unet_train_epoch": 2,
        "unet_train_images_per_second": 5.0,
        "unet_train_validation_loss": 0.5,
        "unet_train_validation_accuracy": 0.9,
    }


TELLING = """
import os, ray
from unet.runtime import telemetry
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
telemetry.record_objects(dict(done=2), 30, dict(fetch=0.25), "out")
telemetry.record_end(0, "out")
telemetry.record_drift(dict(red=0.5), 0.1, "out")
telemetry.record_drifted(["red"], "out")
telemetry.record_steps(32, 0.5, "street")
scores = dict(val_loss=1.0, val_pixel_accuracy=1.0, val_miou=1.0)
telemetry.record_epoch(dict(epoch=1, images_per_second=1.0, **scores), "street")
gauge = telemetry.running_gauge
with gauge(telemetry.TRAINING, run="street"), gauge(telemetry.SEGMENTING, output="out"):
    pass
"""


@pytest.mark.slow
def test_ray_exports_the_names_that_are_declared_though_the_driver_ends_at_once() -> None:
    with ray_cluster() as cluster:
        environment = cluster.environment | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", TELLING], env=environment, check=True, cwd=os.fspath(ROOT))
        deadline = time.monotonic() + 30
        declared = {name for measure in telemetry.MEASURES for name in measure.exported}
        while (seen := exported(cluster.metrics)) != declared and time.monotonic() < deadline:
            time.sleep(0.5)
        assert seen == declared


def exported(url: str) -> set[str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.split("{")[0] for line in lines if line.startswith("ray_unet_")}
