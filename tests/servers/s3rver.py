"""s3rver, an S3 server of Node.js: npm fetches it once, to a folder that later runs find again."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers.ports import free_port
from tests.servers.s3 import HERE, aws, serve

PACKAGE = "s3rver@3.7.1"
INSTALL_SECONDS = 120


def install() -> Path:
    """Return the program, and install it where it is not yet. Raise OSError or SubprocessError if that cannot be."""
    place = Path(tempfile.gettempdir(), f"unet-{PACKAGE}")
    program = place / "node_modules" / ".bin" / "s3rver"
    if not program.exists():
        command = ["npm", "install", "--prefix", str(place), "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_SECONDS)
        except subprocess.SubprocessError:
            shutil.rmtree(place, ignore_errors=True)  # which may be half of it
            raise
    return program


@contextmanager
def s3rver(program: Path, folder: Path, environment: MutableMapping[str, str]) -> Iterator[str]:
    """Serve `folder`, whose subfolders are buckets; yield the URL."""
    port = free_port()
    command = [str(program), "--directory", str(folder), "--address", HERE, "--port", str(port), "--silent"]
    with (
        serve([*command, "--no-vhost-buckets"], HERE, port),
        aws(environment, f"http://{HERE}:{port}", "S3RVER", "S3RVER"),
    ):
        yield f"http://{HERE}:{port}"
