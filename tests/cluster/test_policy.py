"""cluster/aws/policy.json is enough for the jobs, and all of it is needed: tried behind a proxy."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import boto3
import pytest

from tests.conftest import ROOT
from tests.jobs.bench import Bench, fill, save_model
from tests.jobs.training import training_flags
from tests.servers.proxy import Action, Proxy
from unet.segment.lease import acquire
from unet.segment.ledger import Ledger
from unet.segment.run_spec import LEASE_KEY
from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import StorageError
from unet.storage.store import open_store
from unet.train.journal import read_entries

STATEMENTS: list[dict[str, Any]] = json.loads((ROOT / "cluster" / "aws" / "policy.json").read_text())["Statement"]


class Guard(Proxy):
    """A proxy that lets through what the statements allow, as S3 would, and remembers which of them were used."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.statements: list[dict[str, Any]] = []
        self.used: set[str] = set()
        self.denied: list[tuple[str, str]] = []

    def action(self, verb: str, path: str, authorization: str, body: bytes = b"") -> Action | None:
        answer = super().action(verb, path, authorization, body)
        asked = list(rights(verb, path, body))
        refused = [right for right in asked if not self.allows(*right)]
        self.denied += refused
        return "denied" if refused else answer

    def allows(self, action: str, resource: str) -> bool:
        for statement in self.statements:
            meant = any(fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
            if meant and action in listed(statement["Action"]):
                self.used.add(statement["Sid"])
                return True
        return False


def rights(verb: str, path: str, body: bytes) -> Iterator[tuple[str, str]]:
    """Return the actions and resources of a request, by S3's table of the rights that its operations need."""
    parts = urlsplit(path)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    resource = f"arn:aws:s3:::{bucket}"
    query = parse_qs(parts.query, keep_blank_values=True)
    if not key and verb in ("GET", "HEAD"):
        yield "s3:ListBucket", resource
    elif verb in ("GET", "HEAD"):
        yield "s3:GetObject", f"{resource}/{key}"
    elif verb == "POST" and "delete" in query:
        for item in ElementTree.fromstring(body).iter():
            if item.tag.endswith("}Key"):
                yield "s3:DeleteObject", f"{resource}/{item.text}"
    elif verb in ("PUT", "POST") and key:  # parts of a multipart upload too
        yield "s3:PutObject", f"{resource}/{key}"
    else:
        yield f"unknown:{verb}", f"{resource}/{key}"


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.fixture
def guard(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """Empty the site's buckets; yield the proxy, behind the policy."""
    for name in ("example-images", "example-results"):
        bucket = boto3.resource("s3").Bucket(name)
        bucket.create()
        bucket.objects.all().delete()
    with Guard(s3) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between


def site(guard: Guard) -> Bench:
    """Return the places of cluster/kuberay/site, filled with every right."""
    everything = ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    guard.statements = [{"Sid": "All", "Action": everything, "Resource": "*"}]
    bench = Bench("")
    bench.images, bench.masks = "s3://example-images/incoming", "s3://example-results/masks"
    bench.model = "s3://example-results/runs/street/model"
    save_model(bench.model)
    fill(bench.images, ["a.png", "b c/d+é.png"])
    guard.used.clear()
    return bench


def segmented(bench: Bench) -> None:
    """Run with all that a run does beside its pipeline: checks, lease, ledger, report."""
    lease = acquire(bench.masks, LEASE_KEY, run="tried", lifetime=5, fence=1)
    try:
        assert set(bench.statuses(retry_for=0, force=True, verify=True, write="mask,overlay").values()) == {"done"}
        ledger = Ledger(f"{bench.masks}/_segment/ledger", retry_seconds=0)
        assert ledger.contents().replaced == [], "what is merged piles up"
    finally:
        lease.release()


def test_the_policy_is_enough(guard: Guard) -> None:
    bench = site(guard)
    guard.statements = STATEMENTS
    for _ in range(3):  # parts of the ledger pile up and are merged
        segmented(bench)
    assert {right for right in guard.denied if not right[1].endswith("/.writable")} == set()
    assert guard.used == {statement["Sid"] for statement in STATEMENTS}


@pytest.mark.parametrize("left_out", [statement["Sid"] for statement in STATEMENTS])
def test_the_policy_is_no_more_than_enough(left_out: str, guard: Guard) -> None:
    bench = site(guard)
    for _ in range(2):  # so that there is a ledger to merge
        segmented(bench)
    guard.statements = [statement for statement in STATEMENTS if statement["Sid"] != left_out]
    with pytest.raises((StorageError, RequestError, AssertionError)):
        segmented(bench)


@pytest.mark.slow
def test_the_policy_is_enough_to_train_and_to_evaluate(guard: Guard, boxes: Path) -> None:
    site(guard)
    for file in boxes.rglob("*.png"):
        store.write(f"s3://example-images/boxes/{file.relative_to(boxes)}", file.read_bytes())
    guard.statements = STATEMENTS
    classes, results = ["--classes", str(boxes / "classes.csv")], "s3://example-results"
    train = ["jobs/train.py", *training_flags("s3://example-images/boxes", f"{results}/runs"), *classes]
    evaluate = ["jobs/evaluate.py", "--data", "s3://example-images/boxes", "--model", f"{results}/runs/run/model"]
    for command in (train, [*evaluate, "--output", f"{results}/scores", *classes]):
        job = [sys.executable, *command]
        ended = subprocess.run(job, env=os.environ | {"RAY_ADDRESS": "local"}, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [entry["epoch"] for entry in read_entries(f"{results}/runs/run")] == [1, 2, 3]
    refused = {right for right in guard.denied if not right[1].endswith("/.writable")}
    assert {action for action, _ in refused} <= {"s3:DeleteObject"}  # of old checkpoints, which then stay
    assert all("/runs/run/" in resource for _, resource in refused)


def test_nobody_under_the_policy_deletes_an_image_a_mask_or_a_model(guard: Guard) -> None:
    bench = site(guard)
    segmented(bench)
    guard.statements = STATEMENTS
    for place, key in ((bench.images, "a.png"), (bench.masks, "a.png.png"), (bench.model, "model.json")):
        with pytest.raises(StorageError):
            open_store(place, retry_seconds=0).delete([key])
    with pytest.raises(StorageError):
        open_store(bench.images, retry_seconds=0).put("a.png", b"")


def test_the_lifecycle_forgets_what_a_run_has_replaced_and_no_mask(guard: Guard, s3: str) -> None:
    bench, wanted = site(guard), json.loads((ROOT / "cluster" / "aws" / "lifecycle.json").read_text())
    client, results = boto3.client("s3", endpoint_url=s3, region_name="us-east-1"), "example-results"
    client.put_bucket_lifecycle_configuration(Bucket=results, LifecycleConfiguration=wanted)
    rules = client.get_bucket_lifecycle_configuration(Bucket=results)["Rules"]
    client.put_bucket_versioning(Bucket=results, VersioningConfiguration={"Status": "Enabled"})
    try:
        segmented(bench)
        segmented(bench)
        versions = client.list_object_versions(Bucket=results, Prefix="masks/")["Versions"]
    finally:
        client.put_bucket_versioning(Bucket=results, VersioningConfiguration={"Status": "Suspended"})
    replaced = {version["Key"] for version in versions if not version["IsLatest"]}
    prefixes = tuple(rule["Filter"]["Prefix"] for rule in rules if "NoncurrentVersionExpiration" in rule)
    forgotten = {key for key in replaced if key.startswith(prefixes)}
    assert f"masks/{LEASE_KEY}" in forgotten
    assert replaced - forgotten == {"masks/a.png.png", "masks/b c/d+é.png.png", "masks/.writable"}
    assert not any({"Days", "Date"} & rule.get("Expiration", {}).keys() for rule in rules)
