"""A local S3 server over a folder, for benchmarks and the demonstration: rclone's, with real files behind it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def rclone(folder: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """Serves `folder`, whose subfolders are buckets, and sets the AWS environment to use it; yields the URL."""
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    key, secret = "local-server-key", "local-server-secret"
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--auth-key", f"{key},{secret}"]
    options = ["--addr", f"{address}:{port}", "--vfs-cache-mode", "off", "--log-level", "ERROR", str(folder)]
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(address, port)
            yield os.environ["AWS_ENDPOINT_URL"]
        finally:
            server.terminate()
            os.environ.clear()
            os.environ |= before


def _wait_for(address: str, port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no answer from rclone on port {port}")
