"""How a process treats the memory it has freed.

One that computes with tensors retains it: by default glibc returns large blocks to the kernel as they are freed, and
every step faults its activations in anew. Retained, they are there for the next; and huge pages are fewer to fault.
"""

import ctypes
import os

RETAINING = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""The environment of a process that retains memory: glibc's settings, which have to be there when the process starts,
and PyTorch's for huge pages."""

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt, from malloc.h."""


_libc = ctypes.CDLL(None)
_mallopt = getattr(_libc, "mallopt", lambda _, __: 0)  # only glibc has these two
_malloc_trim = getattr(_libc, "malloc_trim", lambda _: 0)


def retain_freed_memory() -> None:
    """Do the same in this process, if it was not begun with `RETAINING`, for threads that have not used memory yet."""
    if RETAINING.items() <= os.environ.items():
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1)):
        _mallopt(parameter, value)


def share_freed_memory() -> None:
    """Let what one thread of this process has freed serve the others: by default each has an arena, which keeps it.

    For threads that have not used memory yet.
    """
    _mallopt(M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Return to the kernel what this process has freed between what it still uses."""
    _malloc_trim(0)
