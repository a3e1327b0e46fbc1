"""What a GET and a PUT of an object cost in CPU time: `python -m tests.benchmarks.client`.

A process with 16 threads, as a worker has them, reads and writes objects of a local server, which is another process:
in turns through libcurl, as S3Store does, and through boto3, which is kept from asking first whether a body will be
taken. Printed are the medians of the rounds, user and system time together, without the server's.
"""

import argparse
import base64
import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers.ports import free_port, wait_for_port
from tests.servers.s3 import HERE, ROOT, aws
from unet.storage import s3
from unet.storage.s3_client import client, object_client
from unet.storage.store import open_store

THREADS = 16
WAYS = {"libcurl": object_client, "boto3": lambda _, profile: client(profile)}
METADATA = {"model-digest": "a" * 64, "image-etag": "b" * 32}


class Handler(BaseHTTPRequestHandler):
    """Serves one object at every key, and drops what is written."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    body = b""

    def do_GET(self) -> None:
        checksum = base64.b64encode(zlib.crc32(self.body).to_bytes(4, "big")).decode()
        self.reply(self.body, **{"x-amz-checksum-crc32": checksum})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(b"")

    def reply(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"ETag": '"e"', "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def send_at_once(params: dict[str, Any], **_: Any) -> None:
    """A handler that keeps boto3 from asking first."""
    params["headers"].pop("Expect", None)


def milliseconds(act: Callable[[int], object], count: int) -> float:
    """CPU time of one call, of `count` by all threads."""
    began = time.process_time()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(act, range(count)))
    return (time.process_time() - began) / count * 1e3


def compare(size: int, rounds: int, count: int) -> None:
    """Prints the figures for objects of `size` bytes."""
    body, store = os.urandom(size), open_store("s3://bucket/masks")
    acts: dict[str, Callable[[int], object]] = {
        "GET": lambda number: store.get(f"{number}.jpg", "e"),
        "PUT": lambda number: store.put(f"{number}.png", body, metadata=METADATA),
    }
    client().meta.events.register_last("before-call.s3", send_at_once)
    taken: dict[tuple[str, str], list[float]] = {(way, verb): [] for way in WAYS for verb in acts}
    for turn in range(rounds + 1):
        for way, verb in taken:
            s3.object_client = WAYS[way]  # type: ignore[assignment, attr-defined]
            one = milliseconds(acts[verb], count)
            if turn:  # the first makes the connections
                taken[way, verb].append(one)
    median = {key: statistics.median(values) for key, values in taken.items()}
    for way in WAYS:
        print(f"{size:,} bytes, {way}: GET {median[way, 'GET']:.2f} ms, PUT {median[way, 'PUT']:.2f} ms", end="; ")
        print(f"{sum(median[way, verb] for verb in acts):.2f} ms", flush=True)
    sums = [[sum(taken[way, verb][turn] for verb in acts) for turn in range(rounds)] for way in WAYS]
    print(f"  libcurl / boto3: {statistics.median(a / b for a, b in zip(*sums, strict=True)):.2f} (goal 0.25)")


def main() -> None:
    """Parses the arguments and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60_000, 6_000], help="bytes of an object")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=200, help="requests of a kind in a round")
    parser.add_argument("--serve", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        Handler.body = os.urandom(given.serve[1])
        server = ThreadingHTTPServer((HERE, given.serve[0]), Handler)
        server.serve_forever()
    for size in given.sizes:
        port = free_port()
        command = [sys.executable, "-m", "tests.benchmarks.client", "--serve", str(port), str(size)]
        with subprocess.Popen(command, cwd=ROOT) as process, aws(os.environ, f"http://{HERE}:{port}", "key", "secret"):
            try:
                wait_for_port(port)
                compare(size, given.rounds, given.count)
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
