"""A stub of S3 with as many images as one wants: `python -m tests.servers.stub --port 9000 --keys 1000000`.

Below images/ of any bucket lie N objects that nobody stored: their names come from a counter (`--names` says how),
their bytes are one PNG. A page of a listing takes `--latency` seconds. Masks are counted and dropped; all else, a
ledger and reports among it, is kept in memory. /stats answers with a JSON object of what was asked for so far. One
process, one thread: nothing here waits.
"""

import argparse
import asyncio
import hashlib
import json
import re
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np

from unet.data.image import encode_image

PAGE = 1000
IMAGES = "images/"
BODY = encode_image(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8))
ETAG = hashlib.md5(BODY).hexdigest()

ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{}&quot;</ETag><Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
LISTING = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<EncodingType>url</EncodingType><IsTruncated>{}</IsTruncated>{}{}</ListBucketResult>"
)


HASH_STEP = (1 << 64) // 100_000_000

NAMES: dict[str, Callable[[int], str]] = {
    "flat": lambda number: f"{number:09d}.png",
    "dated": lambda number: f"2026/{number // 30_000:05d}/camera-{number % 30_000:05d}.png",
    "hashed": lambda number: f"{number * HASH_STEP:016x}.png",
    "skewed": lambda number: f"{'a' if number % 100 == 0 and number < 100 else 'b/one/prefix'}/{number:09d}.png",
}
"""Names that are sorted as their numbers are, relative to images/."""


def image_key(number: int, names: str = "flat") -> str:
    """The key of an image, relative to images/."""
    return NAMES[names](number)


class Bucket:
    """What lies in the stub, and what was asked of it; the same for every bucket name."""

    def __init__(self, images: int, names: str) -> None:
        self.images = images
        self.name = NAMES[names]
        self.stored: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()
        self.first_mask: float | None = None

    def stats(self) -> bytes:
        names = ("lists", "images", "masks", "stored", "read")
        counted = {name: self.counts[name] for name in names}
        return json.dumps(counted | {"first_mask": self.first_mask}).encode()

    def list(self, prefix: str, token: str, after: str) -> bytes:
        """A page: of the images, if `prefix` is theirs, or else of what is stored."""
        self.counts["lists"] += 1
        first = int(token or 0)
        if prefix == IMAGES:
            if after and not token:
                first = bisect_right(range(self.images), after, key=lambda number: IMAGES + self.name(number))
            numbers = range(first, min(first + PAGE, self.images))
            entries = "".join(ENTRY.format(IMAGES + self.name(number), ETAG, len(BODY)) for number in numbers)
            total = self.images
        else:
            keys = sorted(key for key in self.stored if key.startswith(prefix))
            total = len(keys)
            entries = "".join(
                ENTRY.format(quote(key), hashlib.md5(self.stored[key]).hexdigest(), len(self.stored[key]))
                for key in keys[first : first + PAGE]
            )
        more = first + PAGE < total
        following = f"<NextContinuationToken>{first + PAGE}</NextContinuationToken>" if more else ""
        return LISTING.format(str(more).lower(), following, entries).encode()

    def get(self, key: str) -> bytes | None:
        if key.startswith(IMAGES):
            self.counts["images"] += 1
            return BODY
        self.counts["read"] += 1
        return self.stored.get(key)

    def put(self, key: str, data: bytes) -> None:
        if key.startswith("masks/") and not key.startswith("masks/_segment/"):
            if key.endswith(".png"):
                self.counts["masks"] += 1
                self.first_mask = self.first_mask or time.time()
        else:
            self.counts["stored"] += 1
            self.stored[key] = data

    def answer(self, verb: str, target: str, body: bytes) -> tuple[int, str, bytes]:
        """Status, etag and body of the answer to a request."""
        address = urlsplit(target)
        if address.path == "/stats":
            return 200, "", self.stats()
        _, _, key = unquote(address.path)[1:].partition("/")
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        if verb in ("GET", "HEAD"):
            if not key:
                token, after = query.get("continuation-token", ""), query.get("start-after", "")
                return 200, "", self.list(query.get("prefix", ""), token, after)
            data = self.get(key)
            return (404, "", b"") if data is None else (200, _etag(data), data)
        if verb == "PUT":
            if "partNumber" in query:
                self.parts[f"{key}/{int(query['partNumber']):05}"] = body
            else:
                self.put(key, body)
            return 200, _etag(body), b""
        return 200, "", self._post(key, query, body)

    def _post(self, key: str, query: dict[str, str], body: bytes) -> bytes:
        if "delete" in query:
            for found in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                self.stored.pop(found, None)
            return b"<DeleteResult/>"
        if "uploads" in query:
            return f"<R><Bucket>b</Bucket><Key>{escape(key)}</Key><UploadId>1</UploadId></R>".encode()
        parts = sorted(name for name in self.parts if name.rpartition("/")[0] == key)
        self.put(key, b"".join(self.parts.pop(name) for name in parts))
        return f"<R><Key>{escape(key)}</Key><ETag>&quot;1&quot;</ETag></R>".encode()


def _etag(data: bytes) -> str:
    return ETAG if data is BODY else hashlib.md5(data).hexdigest()


class Connection(asyncio.Protocol):
    """HTTP/1.1, kept alive: requests of one connection come one after the other."""

    def __init__(self, bucket: Bucket, latency: float) -> None:
        self.bucket, self.latency = bucket, latency
        self.data = bytearray()
        self.invited = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].decode("latin-1")
            size = int(_header(head, "content-length") or 0)
            if len(self.data) < end + 4 + size:
                if "100-continue" in _header(head, "expect").lower() and not self.invited:
                    self.invited = True
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self.data[end + 4 : end + 4 + size])
            del self.data[: end + 4 + size]
            self.invited = False
            verb, target, _ = head.split(" ", 2)
            answer = self.bucket.answer(verb, target, body)
            if self.latency and "list-type" in target:
                asyncio.get_running_loop().call_later(self.latency, self._reply, verb, *answer)
            else:
                self._reply(verb, *answer)

    def _reply(self, verb: str, status: int, etag: str, body: bytes) -> None:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {len(body)}"]
        if etag:
            lines.append(f'ETag: "{etag}"')
        head = "\r\n".join([*lines, "", ""]).encode()
        self.transport.write(head if verb == "HEAD" else head + body)


def _header(head: str, name: str) -> str:
    found = re.search(rf"\r\n{name}: *([^\r]*)", head, re.IGNORECASE)
    return found[1] if found else ""


async def serve(port: int, keys: int, names: str, latency: float) -> None:
    """Answers until the process ends."""
    bucket = Bucket(keys, names)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(bucket, latency), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keys", type=int, required=True)
    parser.add_argument("--names", choices=NAMES, default="flat")
    parser.add_argument("--latency", type=float, default=0.0)
    given = parser.parse_args()
    asyncio.run(serve(given.port, given.keys, given.names, given.latency))
