"""ARNs of access points, and their aliases, in the place of buckets: what is asked of which host of AWS."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HAS_CRT, HTTPHeaders

from tests.jobs.bench import save_model
from unet.command_line import main
from unet.segment.manifest import Manifest
from unet.storage.objects import split_uri
from unet.storage.s3_client import client
from unet.storage.store import contains, open_store

POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/images"
COLON = "arn:aws:s3:eu-west-1:123456789012:accesspoint:images"
MANY_REGIONS = "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap"
OUTPOST = "arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-01ac5d28a6a232904/accesspoint/images"
ALIAS = "images-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias"


@pytest.mark.parametrize("bucket", [POINT, COLON, MANY_REGIONS, OUTPOST, ALIAS, "bucket"])
def test_the_bucket_of_a_uri_may_be_an_access_point(bucket: str) -> None:
    assert split_uri(f"s3://{bucket}") == (bucket, "")
    assert split_uri(f"s3://{bucket}/") == (bucket, "")
    assert split_uri(f"s3://{bucket}//a/b:c") == (bucket, "/a/b:c")
    assert contains(open_store(f"s3://{bucket}/a"), open_store(f"s3://{bucket}/a/b"))
    assert not contains(open_store(f"s3://{bucket}/a"), open_store(f"s3://{bucket}-2/a/b"))


@pytest.mark.parametrize("bucket", [POINT, ALIAS])
def test_a_manifest_names_the_bucket_behind_an_access_point(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("bucket,key,size,etag\nbehind,2026/a.png,1,e\nbehind,b.png,1,e\n")
    input_uri = f"s3://{bucket}/2026"
    pages = Manifest(str(tmp_path / "list.csv"), input_uri).pages(open_store(input_uri), lambda key: True)
    assert [page["key"].to_pylist() for page in pages] == [["a.png"]]


class Body:
    """Of a response from AWS."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs of requests, which are not sent: each is answered with an empty listing."""
    urls = list[str]()

    def answer(request: Any, **_: Any) -> AWSResponse:
        urls.append(request.url)
        return AWSResponse(request.url, 200, HTTPHeaders.from_dict({"ETag": '"e"', "Content-Length": "5"}), Body())

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    client().meta.events.register("before-send.s3", answer)  # type: ignore[arg-type]
    return urls


@pytest.mark.parametrize(
    ("bucket", "host"),
    [
        (POINT, "images-123456789012.s3-accesspoint.eu-west-1.amazonaws.com"),
        (COLON, "images-123456789012.s3-accesspoint.eu-west-1.amazonaws.com"),
        (OUTPOST, "images-123456789012.op-01ac5d28a6a232904.s3-outposts.eu-west-1.amazonaws.com"),
        (ALIAS, f"{ALIAS}.s3.amazonaws.com"),
    ],
)
def test_requests_go_to_the_host_of_the_access_point(bucket: str, host: str, asked: list[str]) -> None:
    store = open_store(f"s3://{bucket}/2026", retry_seconds=0)
    assert list(store.list()) == []
    assert store.head("a b.png").size == 5
    assert asked[0].startswith(f"https://{host}/?list-type=2&prefix=2026%2F&")
    assert asked[1:] == [f"https://{host}/2026/a%20b.png"]


@pytest.mark.skipif(HAS_CRT, reason="awscrt is installed")
@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("flag", ["--input", "--output"])
def test_a_point_of_several_regions_asks_for_the_package_that_signs_its_requests(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    places = {"--input": str(tmp_path / "images"), "--output": str(tmp_path / "masks")} | {
        flag: f"s3://{MANY_REGIONS}/2026"
    }
    given = [text for pair in places.items() for text in pair]
    assert main(["segment", *given, "--model", save_model(str(tmp_path / "model"))]) == 2
    assert capsys.readouterr().err == (
        f"error: {flag} s3://{MANY_REGIONS}/2026: cannot be {'read' if flag == '--input' else 'written'} (its requests "
        "cannot be signed without the package awscrt); pip install 'botocore[crt]' on every machine\n"
    )
