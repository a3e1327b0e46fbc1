"""What a segmentation promises holds on servers that are not AWS; what they cannot do is said as a run begins."""

import signal
from collections.abc import Callable

import pytest

from tests.jobs.bench import Bench, fill, image_bytes, save_model, without_ray
from tests.segment.test_lease import holder
from unet.segment import compaction
from unet.segment.job import segment
from unet.segment.lease import acquire
from unet.segment.run_spec import LEASE_KEY
from unet.settings import ExitCode
from unet.storage.store import open_store

KEYS = ["a b.png", "a-/b.png", "a.png", "a/b-/c.png", "a/b.png", "b.png", "ä/猫.png"]
"""In order; that of s3rver is another."""

UNCONDITIONAL = (
    "does not know If-Match and If-None-Match; two runs that begin within moments of each other may both write"
)


@pytest.fixture(params=["s3rver", pytest.param("radosgw", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(server: str, bucket_of: Callable[[str], str]) -> Bench:
    bench = Bench(bucket_of(server))
    save_model(bench.model)
    fill(bench.images, KEYS)
    return bench


def test_promise_01_a_run_goes_on_and_a_third_finds_nothing_to_do(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        compaction, "RANGE_ROWS", (2, 2)
    )  # so that ranges are listed side by side, where there is an order
    assert sorted(bench.statuses(limit=3).values()) == 3 * ["done"] + 4 * ["skipped"]
    assert sorted(bench.statuses().values()) == 4 * ["done"] + 3 * ["unchanged"]
    assert bench.statuses() == dict.fromkeys(KEYS, "unchanged")
    assert bench.recorded_keys() == set(KEYS)
    assert set(bench.mask_keys()) == {f"{key}.png" for key in KEYS}


def test_promise_31_what_was_replaced_is_redone_and_what_is_gone_is_pruned(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "RANGE_ROWS", (2, 2))
    bench.run()
    open_store(bench.images).put("a.png", image_bytes(99))
    open_store(bench.images).delete(["a/b.png"])
    open_store(bench.masks).delete(["b.png.png"])
    rest = [key for key in KEYS if key != "a/b.png"]
    again = bench.statuses(prune=True, verify=True, max_delete="50%")
    assert again == dict.fromkeys(rest, "unchanged") | {"a.png": "done", "b.png": "done"}
    assert set(bench.mask_keys()) == {f"{key}.png" for key in rest}


def test_promise_08_a_second_run_is_refused_and_what_the_server_cannot_do_is_said_at_the_start(
    bench: Bench, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lease = acquire(bench.masks, LEASE_KEY, run="first", lifetime=2, fence=1)
    assert capsys.readouterr().out.count(UNCONDITIONAL) == (server == "s3rver")
    with without_ray():
        assert segment(bench.settings(lease=2)) == ExitCode.OUTPUT_HELD
        assert bench.mask_keys() == []
        lease.release()
        assert segment(bench.settings(lease=2)) == 0
    assert len(bench.mask_keys()) == len(KEYS)


def test_promise_08_the_output_of_a_stopped_run_is_taken_over_and_it_learns_of_that(bench: Bench) -> None:
    with holder(bench.masks, LEASE_KEY) as process:
        process.send_signal(signal.SIGSTOP)
        with without_ray():
            assert segment(bench.settings(lease=2)) == 0
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert "has taken it over" in process.stdout.readline()
    assert set(bench.statuses().values()) == {"unchanged"}
