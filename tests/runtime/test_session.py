"""Which Ray a job connects to."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.conftest import ROOT
from unet.runtime.session import connect, join_cluster
from unet.settings import RequestError
from unet.storage.faults import Unreachable

PROGRAM = "from unet.runtime.session import connect; print('own:', connect(worker_output=False))"


@pytest.fixture
def files_of_ray() -> Iterator[Path]:
    """A folder for files of Ray in which no `ray start` is noted; its path is short, as sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="unet-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.usefixtures("one_ray")
def test_a_ray_that_another_job_started_for_itself_is_left_alone(files_of_ray: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_TMPDIR": str(files_of_ray), "PYTHONPATH": str(ROOT)}
    started = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert "own: True" in started.stdout, started.stdout + started.stderr


@pytest.mark.parametrize(
    ("address", "kind", "words"),
    [
        ("http://127.0.0.1:8265", RequestError, "is where jobs are submitted; give HOST:6379, or unset it"),
        ("head:6379", Unreachable, "RAY_ADDRESS head:6379: no cluster answers there"),
    ],
)
def test_an_address_of_no_cluster_is_one_line(
    address: str, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", Mock(side_effect=ConnectionError))
    with pytest.raises(kind, match=words):
        connect(worker_output=False)
    join_cluster()
