"""One run at a time holds an output."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.servers.proxy import Action, Proxy
from tests.servers.s3 import rclone
from unet.segment.lease import Lease, LeaseLost, LeaseUnconfirmed, acquire, is_holder
from unet.storage.store import open_store

LIFETIME = 2.0

HOLDER = """
import sys, time
from unet.segment.lease import LeaseLost, acquire
lease = acquire(sys.argv[1], "lease", run="first", lifetime=2, fence=7)
print(lease.fence, flush=True)
try:
    while True:
        lease.confirm()
        time.sleep(0.05)
except LeaseLost as error:
    print(error, flush=True)
"""


@pytest.fixture(params=["folder", "bucket"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "output") if request.param == "folder" else request.getfixturevalue("bucket")


def take(output: str, run: str = "run", fence: int = 1) -> Lease:
    return acquire(output, "lease", run=run, lifetime=LIFETIME, fence=fence)


@contextmanager
def holder(output: str) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the output, from its first line on."""
    command = [sys.executable, "-c", HOLDER, output]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "7\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_released_output_is_free_at_once(output: str) -> None:
    began = time.monotonic()
    take(output).release()
    take(output, "next").release()
    assert time.monotonic() - began < LIFETIME


def test_a_second_run_is_refused_while_the_first_lives(output: str) -> None:
    with holder(output) as process:
        with pytest.raises(LeaseLost, match="first"):
            take(output)
        assert process.poll() is None


def test_a_killed_holder_is_followed_with_a_higher_fence(output: str) -> None:
    with holder(output) as process:
        process.kill()
        process.wait()
        lease = take(output, fence=8)
        assert lease.fence >= 8
        lease.confirm()
        lease.release()


def test_a_holder_that_was_stopped_for_its_lifetime_learns_that_it_holds_nothing(bucket: str) -> None:
    with holder(bucket) as process:
        process.send_signal(signal.SIGSTOP)
        lease = take(bucket)
        assert lease.fence == 8
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert "run on" in process.stdout.readline()
        assert lease.seconds_left() > 0
        time.sleep(LIFETIME)
        assert lease.seconds_left() > 0  # renewed meanwhile
        lease.release()


@pytest.mark.parametrize("action", ["500", "403"])
def test_a_lease_that_cannot_be_renewed_is_given_up_with_the_reason(
    bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch, action: Action
) -> None:
    with Proxy(s3) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        lease = take(bucket)
        lease.confirm()
        between.add(verb="*", path="*/lease*", action=action)
        while lease.seconds_left() > 0:
            time.sleep(0.1)
        with pytest.raises(LeaseUnconfirmed, match="could not be renewed"):
            lease.confirm()
        between.rules.clear()
        time.sleep(LIFETIME)
        lease.confirm()  # nobody took it meanwhile
        lease.release()
        assert lease.seconds_left() <= 0


def test_a_lock_says_whose_it_is(tmp_path: Path) -> None:
    lease = take(str(tmp_path))
    assert is_holder(str(tmp_path), "lease", "run")
    assert not is_holder(str(tmp_path), "lease", "ru")
    lease.release()


def test_a_lease_that_is_not_readable_is_watched_and_taken_over(bucket: str) -> None:
    open_store(bucket).put("lease", b"\xff")
    lease = take(bucket, fence=3)
    assert lease.fence == 3
    lease.release()


def test_a_server_without_conditional_writes_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bucket").mkdir()
    with rclone(tmp_path):
        lease = take("s3://bucket/masks")
        assert not lease.conditional
        assert "does not know conditional writes" in capsys.readouterr().out
        with pytest.raises(LeaseLost, match=f"process {os.getpid()}"):
            take("s3://bucket/masks", "second")
        lease.release()
        take("s3://bucket/masks", "third").release()
