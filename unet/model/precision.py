"""The precision that a device computes fast in: what `--precision auto` stands for.

bf16 has the range of float32 and needs no care, but processors without instructions for it emulate it, several times
slower than float32. So a CPU is asked by a small convolution in both, and a GPU by its compute capability.
"""

import functools
import math
import time

import torch
from torch.nn import functional as F

from unet.settings import Precision

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

CLEARLY_FASTER = 1.33
"""Speedup of bf16 over fp32 from which on it is chosen. Measured were 1.9 to 2.2 with AVX512-BF16, and where bf16 is
emulated 0.4 (AVX-512) and 0.2 (AVX2), on a busy machine too: noise does not lead from one to the other."""

ROUNDS = 5
"""Convolutions timed in each precision, of which the fastest counts; all together take some tens of milliseconds."""


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Return `precision`, or the fast one of `device` for auto."""
    return fast_precision(device.type) if precision == "auto" else precision


def fast_precision(device_type: str) -> Precision:
    """Return bf16, fp16 or fp32: what the current device of this type computes fast in."""
    if bf16_speedup(device_type) > CLEARLY_FASTER:
        return "bf16"
    return "fp16" if device_type == "cuda" and torch.cuda.get_device_capability()[0] == 7 else "fp32"


def forbid_tf32(precision: Precision, device: torch.device) -> None:
    """Let convolutions in fp32 on a GPU be float32 as a CPU has it, from now on in this process: PyTorch's default
    rounds what they multiply to 10 bits of mantissa."""
    if precision == "fp32" and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


@functools.cache
def bf16_speedup(device_type: str) -> float:
    """Return how many times as fast as fp32 the current device of this type is in bf16, found once a process.

    Of GPUs this is not measured: infinite where they have it, else 0.
    """
    if device_type == "cuda" and torch.cuda.get_device_capability()[0] >= 8:
        return math.inf
    return _measure_speedup() if device_type == "cpu" else 0.0


def _measure_speedup() -> float:
    """Return the seconds of a convolution in fp32 over those in bf16, on this CPU.

    Both take turns on one thread, and its own seconds count: other programs hardly do.
    """
    seconds = {torch.bfloat16: math.inf, torch.float32: math.inf}
    image, kernel = torch.zeros(1, 64, 64, 64), torch.zeros(64, 64, 3, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for one another
    with torch.inference_mode():
        for _ in range(1 + ROUNDS):  # the first prepares the convolutions, and is never the fastest
            for dtype in seconds:
                x, weight = (part.to(dtype, memory_format=torch.channels_last) for part in (image, kernel))
                started = time.thread_time()
                F.conv2d(x, weight, padding=1)
                seconds[dtype] = min(seconds[dtype], time.thread_time() - started)
    torch.set_num_threads(threads)
    return seconds[torch.float32] / seconds[torch.bfloat16]
