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

CLEARLY_FASTER = 0.75
"""Share of the seconds of fp32 that bf16 may take at most. It takes 0.5 where a CPU has it (AVX512-BF16; with AMX far
less), and 2.5 (AVX-512) to 10 (AVX2) where it is emulated: noise does not lead from one to the other."""

ROUNDS = 5
"""Convolutions timed in each precision, of which the fastest counts; all together take some tens of milliseconds."""


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Return `precision`, or the fast one of `device` for auto."""
    return fast_precision(device.type) if precision == "auto" else precision


@functools.cache
def fast_precision(device_type: str) -> Precision:
    """Return bf16, fp16 or fp32: what the current device of this type computes fast in, found once a process."""
    if device_type == "cuda":
        major, _ = torch.cuda.get_device_capability()
        return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    return "bf16" if device_type == "cpu" and _bf16_is_fast() else "fp32"


def _bf16_is_fast() -> bool:
    """Return whether a convolution in bf16 is clearly faster than in fp32 on this CPU.

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
    return seconds[torch.bfloat16] < CLEARLY_FASTER * seconds[torch.float32]
