"""One run at a time holds an output."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from tests.conftest import ROOT
from tests.jobs.bench import Bench, fill, outcomes_of, save_model
from tests.servers.conditions import ConditionProxy, Knowledge
from tests.servers.proxy import Action, Proxy
from tests.servers.s3 import rclone
from unet.segment.job import _prepare
from unet.segment.lease import UNUSED_ETAG, Lease, LeaseLost, LeaseUnconfirmed, acquire, is_holder
from unet.segment.listing import Listing, items_of
from unet.segment.segmenter import Segmenter
from unet.storage.faults import Changed
from unet.storage.store import open_store

LIFETIME = 2.0

HOLDER = """
import sys, time
from unet.segment.lease import LeaseLost, acquire
lease = acquire(sys.argv[1], sys.argv[2], run="first", lifetime=2, fence=7)
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
def holder(output: str, key: str = "lease") -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the output, from its first line on."""
    command = [sys.executable, "-c", HOLDER, output, key]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "7\n" in iter(process.stdout.readline, "")  # behind a warning, on some servers
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


def test_promise_08_a_lease_that_could_not_be_renewed_is_soon_tried_again(
    bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(s3) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        lease = acquire(bucket, "lease", run="run", lifetime=6, fence=1)
        between.add(verb="*", path="*/lease*", action="403")
        time.sleep(4.5)  # the first renewals are due after 2 and 4
        between.rules.clear()
        time.sleep(1)
        assert lease.seconds_left() > 2
        lease.release()


def test_a_bucket_that_keeps_versions_gets_three_of_a_lease_in_its_lifetime(bucket: str, s3: str) -> None:
    client, name = boto3.client("s3", endpoint_url=s3, region_name="us-east-1"), bucket.removeprefix("s3://")
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    def versions() -> int:
        return len(client.list_object_versions(Bucket=name)["Versions"])

    lease = acquire(bucket, "lease", run="run", lifetime=LIFETIME, fence=1)
    before = versions()
    time.sleep(1.5 * LIFETIME)
    assert lease.seconds_left() > 0
    assert 1 <= versions() - before <= 4
    lease.release()


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
        assert "does not know If-Match and If-None-Match" in capsys.readouterr().out
        with pytest.raises(LeaseLost, match=f"process {os.getpid()}"):
            take("s3://bucket/masks", "second")
        lease.release()
        take("s3://bucket/masks", "third").release()


@pytest.fixture(
    params=[
        ("bare", "known"),
        ("refused", "known"),
        ("ignored", "ignored"),
        ("501", "501"),
        ("s3rver", "If-Match and If-None-Match"),
        pytest.param(("radosgw", ""), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def server(
    request: pytest.FixtureRequest, bucket_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """The URI of a bucket whose server knows conditions in its own way, and those that it does not know."""
    if_match, if_none_match = request.param
    if if_match in ("radosgw", "s3rver"):
        yield bucket_of(if_match), if_none_match
        return
    with ConditionProxy(request.getfixturevalue("s3"), if_match, if_none_match) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield request.getfixturevalue("bucket"), unknown(if_match, if_none_match)


def unknown(if_match: Knowledge, if_none_match: Knowledge) -> str:
    known = {"If-Match": if_match in ("known", "bare"), "If-None-Match": if_none_match == "known"}
    return " and ".join(name for name in known if not known[name])


def test_promise_08_run_after_run_holds_the_output_whatever_conditions_the_server_knows(
    server: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    output, unknown_conditions = server
    first = take(output, "first")
    assert first.conditional == (not unknown_conditions)
    assert capsys.readouterr().out.count("warning") == bool(unknown_conditions)
    with pytest.raises(LeaseLost, match="another run holds it"):
        take(output, "second")
    time.sleep(LIFETIME)
    assert first.seconds_left() > 0  # renewed meanwhile
    began = time.monotonic()
    first.release()
    third = take(output, "third")
    assert time.monotonic() - began < LIFETIME
    assert third.fence > first.fence
    third.release()


def test_promise_08_a_lease_that_was_never_released_is_taken_over_whatever_conditions_the_server_knows(
    server: tuple[str, str],
) -> None:
    output, _ = server
    earlier = {"format": 1, "run": "earlier", "fence": 6, "lifetime": 1.0, "host": "a", "released": False, "beat": "b"}
    open_store(output).put("lease", json.dumps(earlier).encode())
    lease = take(output)
    assert lease.fence == 7
    assert lease.seconds_left() > 0
    lease.release()
    assert json.loads(open_store(output).get("lease"))["released"]


@pytest.mark.parametrize("if_none_match", ["known", "ignored", "501"])
@pytest.mark.parametrize("if_match", ["known", "bare", "bare_unread", "refused", "ignored", "501"])
def test_conditions_that_the_server_does_not_know_are_named_once(
    bucket: str,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    if_match: Knowledge,
    if_none_match: Knowledge,
) -> None:
    with ConditionProxy(s3, if_match, if_none_match) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        lease = take(bucket)
        lease.release()
    names = unknown(if_match, if_none_match)
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(said) == bool(names)
    assert all(f"does not know {names};" in line for line in said)
    assert lease.conditional == (not names)


def test_an_etag_goes_without_quotes_only_where_the_right_one_was_refused_with_them(
    bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    etags = {}
    for if_match in ("known", "bare"):
        with ConditionProxy(s3, if_match) as between:
            monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
            store = open_store(bucket)
            first = store.put(if_match, b"first")
            with pytest.raises(Changed):
                store.put(if_match, b"of another", expected_etag=UNUSED_ETAG)
            second = store.put(if_match, b"second", expected_etag=first)
            third = store.put(if_match, b"third", expected_etag=second)
            with pytest.raises(Changed):
                store.put(if_match, b"of another", expected_etag=second)
            assert store.get(if_match, third) == b"third"
            etags[if_match] = between.etags
    quoted = [f'"{etag}"' for etag in (UNUSED_ETAG, first, second, second)]
    assert etags == {"known": quoted, "bare": [*quoted[:2], first, second, second]}


@pytest.mark.parametrize(
    "server", [("bare", "known"), pytest.param(("radosgw", ""), marks=pytest.mark.slow)], indirect=True
)
def test_promise_08_masks_are_replaced_on_condition_where_etags_are_known_without_quotes(
    server: tuple[str, str],
) -> None:
    bench = Bench(server[0])
    save_model(bench.model)
    fill(bench.images, ["a.png"])
    output, others = open_store(bench.masks), list[bytes]()

    def write_between() -> None:
        if others:
            others.append(os.urandom(8))
            output.put("a.png.png", others[-1])

    model, spec = _prepare(bench.settings())
    segmenter = Segmenter(replace(spec, conditional=True), model, guard=write_between)
    items = [item for rows in Listing(spec).tables() for item in items_of(rows)]

    def statuses() -> list[str]:
        return [outcome.status for outcome in outcomes_of(segmenter, items)]

    output.put("a.png.png", b"of a run that was killed")
    assert statuses() == ["done"]
    assert bench.mask("a.png") != b"of a run that was killed"
    others.append(b"another program writes from now on")
    assert statuses() == ["failed"]
    assert bench.mask("a.png") == others[-1]
