"""The benchmark of GPUs runs to its end where there is none."""

import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes minutes, and runs these tests itself")
def test_it_runs_small_on_a_cpu() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["train", "default"], ["segment", "default"]]
    assert all(" images/s, " in line for line in lines[1:])
