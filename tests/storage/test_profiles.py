"""Profiles of the AWS configuration: input and output, each with a server, a region and credentials of its own."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import new_bucket
from tests.jobs.bench import image_bytes, save_model, without_ray
from tests.jobs.job_process import JobProcess
from tests.servers.s3 import rclone
from unet.segment.job import segment
from unet.segment.settings import SegmentSettings
from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import Unreachable
from unet.storage.s3_client import client
from unet.storage.store import Store, check_writable, open_store

PROFILE = """
[profile {}]
region = eu-north-1
{}
aws_access_key_id = {}
aws_secret_access_key = {}
"""
NAMES = "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"


def profile(name: str, endpoint: str = "endpoint_url = {}") -> str:
    """Return the lines of a configuration file that lead where the environment leads."""
    url, *credentials = (os.environ[variable] for variable in NAMES)
    return PROFILE.format(name, endpoint.format(url), *credentials)


@pytest.fixture
def two_servers(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of one name on two servers, which the profiles `here` and `there` lead to; yields its URI.

    The environment leads nowhere.
    """
    bucket, here = new_bucket(s3), profile("here")
    (tmp_path / "served" / bucket.removeprefix("s3://")).mkdir(parents=True)
    with rclone(tmp_path / "served"):
        there = profile("there", "services = rclone")
        there += f"[services rclone]\ns3 =\n  endpoint_url = {os.environ[NAMES[0]]}\n"
        (tmp_path / "config").write_text(here + there)
        with monkeypatch.context() as environment:
            environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
            for name, value in zip(NAMES, ("http://127.0.0.1:9", "nobody", "none"), strict=True):
                environment.setenv(name, value)
            yield bucket


def test_a_profile_leads_to_its_own_server_with_its_own_credentials(two_servers: str) -> None:
    here, there = (open_store(two_servers, profile=name) for name in ("here", "there"))
    here.put("a", b"here")
    pickle.loads(pickle.dumps(there)).put("a", b"there")
    assert (here.get("a"), there.get("a")) == (b"here", b"there")
    assert client("there").meta.region_name == "eu-north-1"
    assert not store.contains(here, there)
    assert store.contains(here, open_store(f"{two_servers}/a", profile="here"))
    with pytest.raises(Unreachable):
        open_store(two_servers, retry_seconds=0).get("a")


def test_two_regions_of_aws_have_the_same_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[profile a]\nregion = eu-west-1\n[profile b]\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    a, b = (open_store("s3://bucket/a", profile=name) for name in ("a", "b"))
    assert client("a").meta.endpoint_url != client("b").meta.endpoint_url
    assert store.contains(a, b)


def test_an_unknown_profile_is_one_line_that_names_its_flag(bucket: str) -> None:
    for check, flag in ((store.check_readable, "--input"), (check_writable, "--output")):
        with pytest.raises(RequestError, match=rf"{flag} .*no profile other\); check {flag}-profile other in ~/.aws"):
            check(bucket, flag, "other")


def test_a_profile_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--output-profile: --output .* is not on S3; leave it out"):
        SegmentSettings(input="s3://b/a", output=str(tmp_path), model="m", input_profile="a", output_profile="a")


@pytest.fixture
def flags(two_servers: str, tmp_path: Path) -> dict[str, Any]:
    """A run from the bucket on one server to that on the other, and images there."""
    store = open_store(two_servers, profile="there")
    for seed, key in enumerate(("a.png", "b.png")):
        store.put(key, image_bytes(seed))
    places = {"input": two_servers, "output": two_servers, "model": save_model(str(tmp_path / "model"))}
    return places | {"input_profile": "there", "output_profile": "here"}


def names(store: Store) -> set[str]:
    return {item.key for page in store.list() for item in page if not item.key.startswith("_segment/")}


@pytest.mark.slow
def test_workers_read_with_one_profile_and_write_with_another(
    two_servers: str, flags: dict[str, Any], tmp_path: Path
) -> None:
    arguments = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", value)]
    assert JobProcess("segment.py", [*arguments, "--workers", "1"], tmp_path / "log").end() == 0
    assert names(open_store(two_servers, profile="here")) == {"a.png.png", "b.png.png"}
    assert names(open_store(two_servers, profile="there")) == {"a.png", "b.png"}


def test_whatever_a_run_asks_of_its_places_it_asks_with_their_profiles(
    two_servers: str, flags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = (open_store(two_servers, profile=name) for name in ("there", "here"))
    images.put("list.csv", b"key\na.png\n")
    with without_ray():
        manifest = f"{two_servers}/list.csv"
        assert segment(SegmentSettings(**flags, manifest=manifest, mask_format="tiff")) == 0
        assert names(masks) == {"a.png.tif"}
        for switch in ("force", "verify", "dry_run"):
            assert segment(SegmentSettings(**flags | {"mask_format": "tiff", switch: True})) == 0
        assert names(masks) == {"a.png.tif", "b.png.tif"}
        images.delete(["a.png"])
        assert segment(SegmentSettings(**flags, mask_format="tiff", prune=True, max_delete="50%")) == 0
        assert names(masks) == {"b.png.tif"}
        with pytest.raises(RequestError, match="holds masks in tiff"):
            segment(SegmentSettings(**flags))
    empty = flags | {"input": f"{two_servers}/none", "output": f"{two_servers}/of-none"}
    with without_ray():
        assert segment(SegmentSettings(**empty, allow_empty=True)) == 0
        assert segment(SegmentSettings(**empty)) == 0
        assert segment(SegmentSettings(**flags | {"input": f"{two_servers}/b.png", "output": f"{two_servers}/c"})) == 2
    assert "is an object" in capsys.readouterr().err
    assert names(images) == {"b.png", "list.csv"}
