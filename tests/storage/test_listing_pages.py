"""Pages of listings as servers write them: all mean the same, by the quick way or by botocore's."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from unittest.mock import patch

import pytest

from unet.storage import s3_client
from unet.storage.objects import ObjectInfo
from unet.storage.store import open_store

PAGE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>b</Name><Prefix>images/</Prefix><KeyCount>2</KeyCount>{}</ListBucketResult>"
)
ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>{}</ETag><Size>{}</Size>{}</Contents>"
)
TYPE = "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
STANDARD = "<StorageClass>STANDARD</StorageClass>"
OWNER = "<Owner><ID>1</ID><DisplayName>somebody</DisplayName></Owner>"

ODD = "a &'\"<b>+.png"
ESCAPED = "images/a &amp;&#39;&#34;&lt;b&gt;+.png"

PAGES = {
    "AWS": TYPE
    + ENTRY.format("images/a+%26%27%22%3Cb%3E%2B.png", "&quot;e-1&quot;", 1, STANDARD)
    + ENTRY.format("images/z.png", "&quot;e-2&quot;", 2, STANDARD),
    "Go": TYPE
    + ENTRY.format("images/a%20%26%27%22%3Cb%3E%2B.png", "&#34;e-1&#34;", 1, OWNER + STANDARD)
    + "\n  "
    + ENTRY.format("images/z.png", "&#34;e-2&#34;", 2, OWNER + STANDARD),
    "without classes": TYPE
    + ENTRY.format("images/a+%26%27%22%3Cb%3E%2B.png", '"e-1"', 1, "")
    + ENTRY.format("images/z.png", "e-2", 2, ""),
    "keys as they are": "<IsTruncated>false</IsTruncated>"
    + ENTRY.format(ESCAPED, "&#34;e-1&#34;", 1, STANDARD)
    + ENTRY.format("images/z.png", "&#x22;e-2&#x22;", 2, STANDARD),
    "one class alone": TYPE
    + ENTRY.format("images/a+%26%27%22%3Cb%3E%2B.png", "&quot;e-1&quot;", 1, STANDARD)
    + ENTRY.format("images/z.png", "&quot;e-2&quot;", 2, ""),
    "all else between": ENTRY.format("images/a+%26%27%22%3Cb%3E%2B.png", "&quot;e-1&quot;", 1, STANDARD)
    + TYPE
    + ENTRY.format("images/z.png", "&quot;e-2&quot;", 2, STANDARD),
}


@contextmanager
def serving(body: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_read_as_it_is_meant(name: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(PAGE.format(PAGES[name])) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        (page,) = open_store("s3://b/images").list()
    assert page == [ObjectInfo(ODD, 1, "e-1"), ObjectInfo("z.png", 2, "e-2")]


def test_the_pages_of_usual_servers_are_read_the_quick_way() -> None:
    for name, content in PAGES.items():
        response = {"status_code": 200, "body": PAGE.format(content).encode()}
        kept: dict[str, object] = {}
        s3_client._take_entries(response, kept)
        assert ("Entries" in kept) == (name not in ("one class alone", "all else between")), name


RESTORED = (
    "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress>"
    "<RestoreExpiryDate>2026-12-24T00:00:00.000Z</RestoreExpiryDate></RestoreStatus>"
)
BEING_RESTORED = "<RestoreStatus><IsRestoreInProgress>true</IsRestoreInProgress></RestoreStatus>"
ARCHIVED = "<StorageClass>GLACIER</StorageClass>"


def test_an_archived_object_that_has_been_restored_is_read(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = TYPE + "".join(
        ENTRY.format(f"images/{name}.png", "e", 1, more)
        for name, more in (
            ("a", ARCHIVED),
            ("b", ARCHIVED + BEING_RESTORED),
            ("c", ARCHIVED + RESTORED),
            ("d", STANDARD),
        )
    )
    with serving(PAGE.format(body)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        (page,) = open_store("s3://b/images").list()
    assert [item.storage_class for item in page] == ["GLACIER", "GLACIER", "STANDARD", "STANDARD"]


@pytest.mark.parametrize(("ongoing", "kind"), [("true", "GLACIER"), ("false", "STANDARD")])
def test_an_archived_object_of_a_manifest_that_has_been_restored_is_read(ongoing: str, kind: str) -> None:
    answer = {"ContentLength": 1, "ETag": '"e"', "StorageClass": "GLACIER"}
    answer["Restore"] = f'ongoing-request="{ongoing}", expiry-date="Fri, 24 Dec 2027 00:00:00 GMT"'
    images = open_store("s3://b/images")
    with patch.object(type(images), "_client") as client:
        client.head_object.return_value = answer
        assert images.head("a.png").storage_class == kind
