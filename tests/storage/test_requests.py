"""What requests to S3 say because the environment asks for it, and what is said where a server refuses a checksum."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from unet.storage.faults import StorageError
from unet.storage.s3 import PART_BYTES
from unet.storage.store import open_store

Headers = dict[str, str]

UPLOAD = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
REFUSAL = "<Error><Code>{}</Code><Message>Unsupported header x-amz-checksum-crc32</Message></Error>"


@contextmanager
def recording(refused: tuple[int, str] | None = None) -> Iterator[tuple[str, list[tuple[str, Headers]]]]:
    """Serve, and refuse writes with a checksum by status and code; yield the URL, and verb and headers of requests."""
    seen: list[tuple[str, Headers]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen.append((self.command, headers))
            self.rfile.read(int(headers.get("content-length", 0)))
            body, status = (UPLOAD if self.command == "POST" else b""), 200
            if refused is not None and any("crc32" in name for name in headers):
                status, body = refused[0], REFUSAL.format(refused[1]).encode()
            self.send_response(status)
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.usefixtures("s3")
def test_whoever_asks_pays_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(PART_BYTES + 1))
    with recording() as (url, seen):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for payer in (None, "requester"):
            if payer:
                monkeypatch.setenv("AWS_REQUEST_PAYER", payer)
            store = open_store("s3://b/x", retry_seconds=0)
            store.head("a")
            store.get("a")
            store.put("a", b"1")
            store.put_file("b", tmp_path / "large")
            assert len(seen) >= 7
            assert {headers.get("x-amz-request-payer") for _, headers in seen} == {payer}
            seen.clear()


@pytest.mark.usefixtures("s3")
def test_no_checksum_is_sent_where_the_environment_asks_for_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(PART_BYTES + 1))
    with recording() as (url, seen):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for asked, sent in (("when_supported", True), ("when_required", False)):
            monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", asked)
            store = open_store("s3://b/x", retry_seconds=0)
            store.put("a", b"1")
            store.put_file("b", tmp_path / "large")
            puts = [headers for verb, headers in seen if verb == "PUT"]
            assert len(puts) == 3
            assert all(("x-amz-checksum-crc32" in headers) == sent for headers in puts)
            assert not any("trailer" in headers or "x-amz-trailer" in headers for headers in puts)
            seen.clear()


@pytest.mark.usefixtures("s3")
def test_no_checksum_is_asked_for_where_the_environment_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording() as (url, seen):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for wanted in ("when_supported", "when_required"):
            monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", wanted)
            open_store("s3://b/x", retry_seconds=0).get("a")
    assert [headers.get("x-amz-checksum-mode") for _, headers in seen] == ["ENABLED", None]


@pytest.mark.usefixtures("s3")
def test_a_profile_says_what_checksums_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with recording() as (url, seen):
        (tmp_path / "config").write_text(
            f"[profile old]\nendpoint_url = {url}\naws_access_key_id = a\naws_secret_access_key = b\n"
            "request_checksum_calculation = when_required\nresponse_checksum_validation = when_required\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        store = open_store("s3://b/x", profile="old", retry_seconds=0)
        store.put("a", b"1")
        store.get("a")
    assert [verb for verb, _ in seen] == ["PUT", "GET"]
    assert not any("checksum" in name for _, headers in seen for name in headers)


@pytest.mark.usefixtures("s3")
def test_a_mask_is_sent_without_asking_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording() as (url, seen):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open_store("s3://b/x", retry_seconds=0).put("a.png", bytes(60_000))
    assert [verb for verb, _ in seen] == ["PUT"]
    assert "expect" not in seen[0][1]


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("refused", [(400, "InvalidArgument"), (501, "NotImplemented")])
def test_a_server_that_knows_no_checksum_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, refused: tuple[int, str]
) -> None:
    with recording(refused) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StorageError, match="set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
            open_store("s3://b/x", retry_seconds=0).put("a", b"1")
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        assert open_store("s3://b/x", retry_seconds=0).put("a", b"1") == "e"
