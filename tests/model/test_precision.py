"""Automatic precision: what is given is kept, and auto is what the device computes fast in."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from unet.model.precision import DTYPES, bf16_speedup, fast_precision, resolve_precision

ASK = "from unet.model.precision import fast_precision; print(fast_precision('cpu'))"


def test_a_precision_that_is_given_is_kept() -> None:
    for precision in DTYPES:
        assert resolve_precision(precision, torch.device("cpu")) == precision
    assert resolve_precision("auto", torch.device("cpu")) == fast_precision("cpu")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only oneDNN on x86 is told which instructions to use")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_a_cpu_that_emulates_bf16_is_given_fp32(instructions: str) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fp32"


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_bf16"), reason="has no AVX512-BF16")
def test_a_cpu_with_instructions_for_bf16_is_given_bf16() -> None:
    assert fast_precision("cpu") == "bf16"


def test_to_ask_leaves_the_number_of_threads_alone() -> None:
    bf16_speedup.cache_clear()
    before = torch.get_num_threads()
    fast_precision("cpu")
    assert torch.get_num_threads() == before
