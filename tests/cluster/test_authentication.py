"""A cluster with a token answers nobody without it, at none of its ports."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, ray_cluster
from tests.processes import processes_naming
from tests.servers.ports import free_port

CONNECT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("connected", ray.nodes()[0]["NodeID"])
"""

UNAUTHENTICATED = ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32})
"""Environments without a token, and with another."""

PATHS = (
    "/",
    "/api/jobs/",
    "/api/job_agent/jobs/",
    "/api/cluster_status",
    "/api/v0/nodes",
    "/api/v0/logs",
    "/nodes?view=summary",
    "/logs/",
    "/log_index",
)


@pytest.fixture(scope="module")
def with_client_server() -> Iterator[tuple[Cluster, int]]:
    """Yield a cluster, and the port of its Ray client server."""
    port = free_port()
    with ray_cluster(f"--ray-client-server-port={port}") as cluster:
        yield cluster, port


def output_of_connecting(address: str, environment: dict[str, str]) -> str:
    try:
        ended = subprocess.run(
            [sys.executable, "-c", CONNECT, address], env=environment, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return "left waiting"
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("server", ["gcs", "client"])
def test_nobody_connects_without_the_token(server: str, with_client_server: tuple[Cluster, int]) -> None:
    cluster, port = with_client_server
    address = cluster.address if server == "gcs" else f"ray://127.0.0.1:{port}"
    assert "connected" in output_of_connecting(address, cluster.environment)
    for environment in UNAUTHENTICATED:
        plain = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_")}
        assert "connected" not in output_of_connecting(address, plain | environment)


@pytest.mark.slow
def test_no_port_of_the_cluster_answers_http_without_the_token(with_client_server: tuple[Cluster, int]) -> None:
    cluster, _ = with_client_server
    dashboard = int(cluster.dashboard.rsplit(":", 1)[1])
    ports = listening(cluster)
    assert dashboard in ports
    answered = {
        (port, path)
        for port in ports
        for path in PATHS
        for token in (None, "0" * 32)
        if (port, path) != (dashboard, "/") and answers(port, path, token)  # the page itself holds nothing
    }
    assert {path for _, path in answered} == set(), answered


def listening(cluster: Cluster) -> set[int]:
    """Return the TCP ports that processes of the cluster listen on."""
    sockets = set()
    for process in processes_naming(cluster.folder):
        for link in Path(f"/proc/{process}/fd").glob("*"):
            with suppress(OSError):  # closed by now
                sockets.add(os.readlink(link))
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def answers(port: int, path: str, token: str | None) -> bool:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return not answer.read(6).startswith(b"# HELP")  # numbers for Prometheus, which Ray shows to everybody
    except urllib.error.HTTPError as error:
        return error.code not in (401, 403, 404, 405)
    except (OSError, HTTPException):  # no HTTP is spoken there
        return False


@pytest.mark.slow
def test_nobody_submits_a_job_without_the_token(with_client_server: tuple[Cluster, int]) -> None:
    cluster, _ = with_client_server
    for port in listening(cluster):
        for path in ("/api/jobs/", "/api/job_agent/jobs/"):
            body = json.dumps({"entrypoint": "true"}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"}, method="POST"
            )
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    said = answer.read(200)
            except (OSError, HTTPException):  # refused, or no HTTP
                continue
            assert b"submission_id" not in said, (port, path)
