"""Which Ray a job connects to."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

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
