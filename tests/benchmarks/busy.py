"""What a user's other programs take: loops without end, at normal priority."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep `count` processes busy within the block, each as much of a processor as it gets."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(["sh", "-c", "while :; do :; done"]))
            stack.callback(process.kill)
        yield
