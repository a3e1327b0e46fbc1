"""Local S3 servers, each with the AWS environment that leads to it."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from moto.server import ThreadedMotoServer

from tests.servers.ports import free_port, wait_for_port

ROOT = Path(__file__).parent.parent.parent
HERE = "127.0.0.1"

Environment = MutableMapping[str, str]


@contextmanager
def moto(address: str = HERE, environment: Environment = os.environ) -> Iterator[str]:
    """Serve empty buckets from memory; yield the URL. All servers of a process share their buckets."""
    server = ThreadedMotoServer(ip_address=address, port=0)
    server.start()
    try:
        url = f"http://{address}:{server.get_host_and_port()[1]}"
        with aws(environment, url, "the-tests-key", f"the-tests-secret-{secrets.token_hex(8)}"):
            yield url
    finally:
        server.stop()


@contextmanager
def rclone(folder: Path, address: str = HERE, environment: Environment = os.environ) -> Iterator[str]:
    """Serve `folder`, whose subfolders are buckets; yield the URL."""
    port, key, secret = free_port(address), "local-server-key", "local-server-secret"
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--auth-key", f"{key},{secret}"]
    options = ["--addr", f"{address}:{port}", "--vfs-cache-mode", "off", "--log-level", "ERROR", str(folder)]
    with serve([*command, *options], address, port), aws(environment, f"http://{address}:{port}", key, secret):
        yield f"http://{address}:{port}"


@contextmanager
def stub(keys: int, names: str = "flat", latency: float = 0.0) -> Iterator[str]:
    """Serve so many images that nobody stored, as tests/servers/stub.py says; yield the URL."""
    port = free_port()
    command = [sys.executable, "-m", "tests.servers.stub", "--port", str(port), "--keys", str(keys)]
    command += ["--names", names, "--latency", str(latency)]
    with serve(command, HERE, port), aws(os.environ, f"http://{HERE}:{port}", "key", "secret"):
        yield f"http://{HERE}:{port}"


@contextmanager
def serve(command: list[str], address: str, port: int) -> Iterator[None]:
    """Run a server, which answers from the beginning of the block on."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port, address)
            yield
        finally:
            server.terminate()


@contextmanager
def aws(environment: Environment, url: str, key: str, secret: str) -> Iterator[None]:
    """Set the AWS settings of `environment` within the block, and those alone."""
    before = {name: value for name, value in environment.items() if name.startswith("AWS_")}
    for name in before:
        del environment[name]
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    environment.update(settings)
    try:
        yield
    finally:
        for name in [name for name in environment if name.startswith("AWS_")]:
            del environment[name]
        environment.update(before)
