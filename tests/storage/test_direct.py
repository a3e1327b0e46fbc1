"""The bytes of objects by libcurl: requests are boto3's, and answers that are not as they should be are found out."""

import base64
import hashlib
import json
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.session import Session

from tests.servers.proxy import Proxy
from tests.servers.s3 import rclone
from tests.storage.test_store import ODD_KEYS
from unet.storage import s3, s3_direct
from unet.storage.faults import Damaged, Denied, NoSuchFolder, StorageError, Unreachable
from unet.storage.s3_client import client, discard_clients, object_client
from unet.storage.s3_direct import DirectClient, answer_probe, direct_client
from unet.storage.store import Store, open_store

Answer = Callable[["Handler"], None]


class Request(NamedTuple):
    verb: str
    path: str
    data: bytes
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    """Answers as its server's `answer` says, of which `reply` is the usual part."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def serve(self) -> None:
        self.data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.sent = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append(Request(self.command, self.path, self.data, self.sent))
        self.server.connections.add(self.client_address)
        self.server.answer(self)

    do_GET = do_PUT = do_HEAD = do_CONNECT = serve  # noqa: N815

    def reply(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"ETag": '"e"', "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen, self.connections = answer, list[Request](), set[Any]()

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving(answer: Answer, certificate: Path | None = None) -> Iterator[Server]:
    """Serve S3 as `answer` says, in place of the server of the AWS environment."""
    server = Server(answer)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http{'s' * bool(certificate)}://127.0.0.1:{server.server_port}")
        yield server
    server.shutdown()
    server.server_close()


def store_of(uri: str = "s3://bucket/p") -> Store:
    return open_store(uri, retry_seconds=0)


@pytest.fixture(autouse=True)
def _credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")


def set_profile(monkeypatch: pytest.MonkeyPatch, folder: Path, lines: str) -> None:
    (folder / "config").write_text(f"[default]\n{lines}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))


# How requests look.

VARYING = {"amz-sdk-invocation-id", "amz-sdk-request", "authorization", "connection", "expect", "proxy-connection"}
VARYING |= {"user-agent", "x-amz-date"}  # boto3 says in the first which of its features it uses
PLACES = {
    "by path": ({"AWS_ENDPOINT_URL": "http://s3.invalid:8000/store"}, "s3 =\n  addressing_style = path"),
    "by host": ({"AWS_ENDPOINT_URL": "http://s3.invalid"}, "s3 =\n  addressing_style = virtual"),
    "with a token": ({"AWS_SESSION_TOKEN": "token+/=", "AWS_REQUEST_PAYER": "requester"}, "region = eu-west-1"),
    "unverified": ({"AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}, ""),
    "with no checksum": ({"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}, ""),
    "without a signed body": ({}, "s3 =\n  payload_signing_enabled = false"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_request_is_the_one_that_boto3_would_send(place: str, tmp_path: Path) -> None:
    with serving(Handler.reply) as server, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.invalid")
        set_profile(monkeypatch, tmp_path, PLACES[place][1])
        for name, value in PLACES[place][0].items():
            monkeypatch.setenv(name, value)
        assert isinstance(object_client("bucket"), DirectClient)
        store = store_of("s3://bucket/ä b")
        for way in (object_client, lambda bucket, profile: client(profile)):
            monkeypatch.setattr(s3, "object_client", way)
            store.get("//%2F.png")
            store.get("x?y#z", "e")
            store.put(".a+b.png", b"bytes", metadata={"Model": "m", "tag": 'a  "b"'})
            store.put("empty", b"", expected_etag="")
            store.put("c.jpg", bytes(70_000), expected_etag="old")
        sent = [
            (each.verb, each.path, each.data, {name: each.headers[name] for name in each.headers.keys() - VARYING})
            for each in server.seen
        ]
        scopes = [each.headers["authorization"].partition(",")[0] for each in server.seen]
    assert len(sent) == 10
    assert sent[:5] == sent[5:]
    assert scopes[:5] == scopes[5:]


@pytest.mark.parametrize(
    ("name", "profile", "host"),
    [
        ("AWS_USE_DUALSTACK_ENDPOINT", "", "bucket.s3.dualstack.us-east-1.amazonaws.com:443"),
        ("AWS_USE_FIPS_ENDPOINT", "", "bucket.s3-fips.us-east-1.amazonaws.com:443"),
        ("AWS_N", "s3 =\n  use_accelerate_endpoint = true", "bucket.s3-accelerate.amazonaws.com:443"),
    ],
)
def test_a_bucket_of_aws_is_where_boto3_finds_it(name: str, profile: str, host: str, tmp_path: Path) -> None:
    with (
        serving(lambda request: request.reply(502, Proxy_Authenticate="no")) as server,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        monkeypatch.setattr(s3, "MIN_ATTEMPTS", 1)
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.setenv(name, "true")
        set_profile(monkeypatch, tmp_path, profile)
        monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
        for way in (object_client, lambda bucket, profile: client(profile)):
            monkeypatch.setattr(s3, "object_client", way)
            with pytest.raises(Unreachable):
                store_of().get("a")
    assert [(each.verb, each.path) for each in server.seen] == 2 * [("CONNECT", host)]
    assert "token" not in str(server.seen)


def test_every_odd_key_is_signed_as_botocore_signs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    with serving(lambda request: request.reply(body=b"data")) as server:
        for key in ODD_KEYS:
            store_of("s3://bucket/ä").get(key)
            store_of("s3://bucket").put(key, b"data", metadata={"m": "a  b"})
    assert len(server.seen) == 2 * len(ODD_KEYS)
    keys = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], "token")
    for each in server.seen:
        signed, signature = each.headers["authorization"].split("SignedHeaders=")[1].split(", Signature=")
        again = AWSRequest(each.verb, f"http://{each.headers['host']}{each.path}", data=each.data)
        for name in signed.split(";"):
            again.headers[name] = each.headers[name]
        again.context["timestamp"] = each.headers["x-amz-date"]
        auth = S3SigV4Auth(keys, "s3", "us-east-1")
        assert auth.signature(auth.string_to_sign(again, auth.canonical_request(again)), again) == signature
        assert hashlib.sha256(each.data).hexdigest() == each.headers["x-amz-content-sha256"]


def test_a_server_that_verifies_signatures_takes_them(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    with rclone(tmp_path):
        store = store_of("s3://bucket/a b")
        assert isinstance(object_client("bucket"), DirectClient)
        store.put("ä +%.png", b"bytes", metadata={"model": "m"})
        assert store.get("ä +%.png") == b"bytes"


def test_ceph_takes_them_too(radosgw_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in radosgw_environment.items():
        monkeypatch.setenv(name, value)
    client().create_bucket(Bucket="direct")
    assert isinstance(object_client("direct"), DirectClient)
    store = store_of("s3://direct/a b")
    for key in ("ä +%.png", "a//b", "~'(x)*!"):
        assert store.get(key, store.put(key, b"bytes", metadata={"model": "m"})) == b"bytes"


@pytest.mark.parametrize("bucket", ["bucket--usw2-az1--x-s3", "arn:aws:s3:us-west-2:123456789012:accesspoint/a"])
def test_a_bucket_of_another_kind_goes_by_boto3(bucket: str) -> None:
    assert object_client(bucket) is client()


@pytest.mark.parametrize("version", ["s3", UNSIGNED])
def test_what_is_signed_otherwise_or_not_at_all_goes_by_boto3(version: Any) -> None:
    made = boto3.client("s3", config=Config(signature_version=version))
    made.meta.events.register("before-send.s3.GetObject", answer_probe)  # type: ignore[arg-type]
    assert direct_client(made, Session(), "bucket") is None


def test_a_bucket_elsewhere_is_found_by_boto3_and_goes_by_it_from_then_on() -> None:
    error = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>no</Message><Region>eu-west-1</Region></Error>"

    def answer(request: Handler) -> None:
        here = "/eu-west-1/s3/" in request.sent["authorization"]
        data = b"data" if request.command == "GET" else b""
        request.reply(200 if here else 400, data if here else error, x_amz_bucket_region="eu-west-1")

    with serving(answer) as server:
        assert store_of().get("a") == b"data"
        assert object_client("bucket") is client()
        server.seen.clear()
        guards: list[int] = []
        store_of().put("a", b"1", guard=lambda: guards.append(len(server.seen)))
        assert store_of().get("a") == b"data"
        assert isinstance(object_client("another"), DirectClient)
    assert guards == [0]


def test_credentials_that_are_renewed_are_taken_anew_for_each_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60))  # botocore renews 10 minutes before
    keys = json.dumps(
        {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "s", "SessionToken": "token", "Expiration": soon}
    )
    script = tmp_path / "keys.sh"
    script.write_text(f"echo x >> {tmp_path}/runs; echo '{keys}' | sed s/token/token$(wc -l < {tmp_path}/runs)/\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    set_profile(monkeypatch, tmp_path, f"credential_process = sh {script}")
    with serving(Handler.reply) as server:
        store_of().put("a", b"")
        store_of().put("b", b"")
    tokens = [each.headers["x-amz-security-token"] for each in server.seen]
    assert len(set(tokens)) == 2


# What becomes of answers.


def checksum(name: str, data: bytes) -> dict[str, Any]:
    return {f"x-amz-checksum-{name}": base64.b64encode(hashlib.new(name, data).digest()).decode()}


@pytest.mark.parametrize("name", ["sha1", "sha256"])
def test_a_body_that_does_not_match_its_checksum_is_damaged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "BODY_ATTEMPTS", 1)
    with serving(lambda request: request.reply(body=b"data", **checksum(name, request.path[-4:].encode()))):
        assert store_of().get("data") == b"data"
        with pytest.raises(Damaged, match=rf"came cut short or altered \({name}\)"):
            store_of().get("date")
        monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        assert store_of().get("date") == b"data"


def test_a_checksum_of_checksums_is_not_that_of_the_body() -> None:
    with serving(lambda request: request.reply(body=b"data", x_amz_checksum_crc32="AAAAAA==-2")):
        assert store_of().get("a") == b"data"


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (403, b"<html>no</html>", Denied, "Forbidden (403)"),
        (403, b"", Denied, "Forbidden (403)"),
        (429, b"not < xml", Unreachable, "Too Many Requests (429)"),
        (
            503,
            b"<Error><Code>SlowDown</Code><Message>slow\ndown</Message></Error>",
            Unreachable,
            "slow down (SlowDown)",
        ),
        (404, b"<Error><Code>NoSuchBucket</Code></Error>", NoSuchFolder, "there is no such bucket"),
        (418, b"", StorageError, "(418)"),
    ],
)
def test_an_error_is_the_one_that_boto3_makes_of_it(
    status: int, body: bytes, kind: type[StorageError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda request: request.reply(status, body)):
        said = []
        for way in (object_client, lambda bucket, profile: client(profile)):
            monkeypatch.setattr(s3, "object_client", way)
            for act in (lambda: store_of().get("a"), lambda: store_of().put("a", b"")):
                with pytest.raises(kind) as raised:
                    act()
                assert type(raised.value) is kind
                said.append(str(raised.value))
    assert words in said[0]
    assert len(set(said)) == 1 or body.startswith(b"<html>")


def test_an_error_after_a_status_of_success_is_an_error() -> None:
    with (
        serving(lambda request: request.reply(200, b"<Error><Code>InternalError</Code></Error>")),
        pytest.raises(Unreachable, match="InternalError"),
    ):
        store_of().put("a", b"")


def test_interim_answers_are_passed_over() -> None:
    def answer(request: Handler) -> None:
        request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nETag: no\r\n\r\n")
        request.reply(body=b"data", Via="HTTP/1.1")

    with serving(answer):
        assert store_of().get("a", "e") == b"data"


# Connections.


def test_connections_are_kept_and_there_are_no_more_than_threads() -> None:
    with serving(lambda request: request.reply(body=b"data")) as server, ThreadPoolExecutor(4) as pool:
        list(pool.map(store_of().get, map(str, range(60))))
        list(pool.map(lambda key: store_of().put(key, b"data"), map(str, range(60))))
        assert len(server.seen) == 120
        assert len(server.connections) <= 4


def test_a_connection_that_the_server_closed_meanwhile_is_made_again() -> None:
    def answer(request: Handler) -> None:
        request.close_connection = True  # without saying so
        request.reply(body=b"data")

    with serving(answer) as server:
        for _ in range(3):
            assert store_of().get("a") == b"data"
            time.sleep(0.05)
        assert len(server.seen) == 3


@pytest.mark.parametrize("data", [b"x" * 1000, b"x" * 300_000])
def test_no_attempt_to_write_is_made_without_its_guard(data: bytes) -> None:
    def answer(request: Handler) -> None:
        if len(request.server.seen) in (2, 3):  # on a connection that was used before, and on a new one
            request.close_connection = True
        else:
            request.reply()

    with serving(answer) as server:
        guards: list[int] = []
        for _ in range(2):
            store_of().put("a", data, guard=lambda: guards.append(len(server.seen)))
        assert guards == [0, 1, 2, 3]
        assert len(server.seen) == 4


def test_a_server_without_an_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_direct, "READ_SECONDS", 1)
    monkeypatch.setattr(s3, "MIN_ATTEMPTS", 1)
    with serving(lambda request: time.sleep(20)):
        began = time.monotonic()
        with pytest.raises(Unreachable, match="no answer from the storage server"):
            store_of().get("a")
        assert time.monotonic() - began < 10


def test_a_child_process_has_connections_of_its_own() -> None:
    with serving(lambda request: request.reply(body=request.path.encode())) as server:
        assert store_of().get("a") == b"/bucket/p/a"
        child = os.fork()
        if not child:
            with suppress(BaseException):
                os._exit(0 if all(store_of().get(str(n)) == f"/bucket/p/{n}".encode() for n in range(20)) else 1)
            os._exit(2)
        assert all(store_of().get(str(n)) == f"/bucket/p/{n}".encode() for n in range(100, 120))
        assert os.waitpid(child, 0)[1] == 0
        assert len(server.connections) == 2


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate of 127.0.0.1 that no authority signed."""
    path = tmp_path / "server.pem"
    make = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(["openssl", *make.split(), "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_a_server_is_known_by_the_certificates_of_the_environment(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with serving(lambda request: request.reply(body=b"data"), certificate) as server:
        with pytest.raises(Unreachable, match="certificate"):
            store_of().get("a")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        assert store_of().get("a") == b"data"
        store_of().put("a", b"data")  # TLS and the checksum protect it
        assert server.seen[-1].headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        monkeypatch.delenv("AWS_CA_BUNDLE")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        discard_clients()
        assert store_of().get("a") == b"data"
        monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere.pem")
        with pytest.raises(StorageError) as caught:
            store_of().get("a")
        assert type(caught.value) is StorageError


def test_no_error_quotes_a_token(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.add(verb="*", action="reset")
    for token in ("secret-token", "secret-token\n"):
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
        with pytest.raises(StorageError) as caught:
            store_of().put("a", b"")
        assert "secret" not in str(caught.value)
