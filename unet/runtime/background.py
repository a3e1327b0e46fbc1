"""Work that goes on beside the main thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeat(function: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call `function` every so many seconds, from a thread of its own, within the block."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
