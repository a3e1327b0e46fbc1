"""A Ray cluster with token authentication, as `ray start --head` makes it."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.processes import processes_naming
from tests.servers.ports import free_port

RAY = str(Path(sys.executable).with_name("ray"))
CANARY = "canary-of-the-cluster-tests"
"""The secret key of its machines."""


@dataclass
class Cluster:
    """One machine, or several raylets that stand for machines. `folder` holds its logs."""

    folder: Path
    environment: dict[str, str]
    address: str
    dashboard: str
    metrics: str
    """Where Prometheus would read."""

    def ray(self, *arguments: str, timeout: float = 240) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [RAY, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )

    def submit(self, *entrypoint: str, options: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
        where = ("--address", self.dashboard, "--working-dir", ".")
        for _ in range(15):
            ended = self.ray("job", "submit", *where, *options, "--", "python", *entrypoint)
            if "No available agent to submit job" not in ended.stderr:  # it comes up after `ray start`
                return ended
            time.sleep(0.5)
        raise TimeoutError(ended.stderr)


@contextmanager
def ray_cluster(*options: str) -> Iterator[Cluster]:
    """Start a head of two CPUs, as `ray start --head` makes it, whose processes may use the S3 server of the tests."""
    folder = Path(tempfile.mkdtemp(prefix="unet-"))  # short: sockets lie in it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "AWS_SECRET_ACCESS_KEY": CANARY}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # whose python runs the jobs
    gcs, dashboard, metrics = free_port(), free_port(), free_port()
    here = "127.0.0.1"
    made = Cluster(
        folder, environment, f"{here}:{gcs}", f"http://{here}:{dashboard}", f"http://{here}:{metrics}/metrics"
    )
    head = ["start", "--head", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--disable-usage-stats"]
    ports = [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    ports.append(f"--metrics-export-port={metrics}")
    try:
        begun = made.ray(*head, *ports, f"--temp-dir={folder}", *options)
        assert begun.returncode == 0, begun.stderr
        yield made
    finally:
        for process in processes_naming(folder):
            with suppress(OSError):
                os.kill(process, 9)
        shutil.rmtree(folder, ignore_errors=True)
