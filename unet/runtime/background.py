"""Work that goes on beside the main thread."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import Queue
from typing import TypeVar

T = TypeVar("T")


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


def read_ahead(items: Iterable[T], most: int = 2) -> Iterator[T]:
    """Yield `items`, which a thread of its own takes from their source, up to `most` of them ahead."""
    ready: Queue[Future[T] | None] = Queue(most)

    def read() -> None:
        try:
            for item in items:
                found: Future[T] = Future()
                found.set_result(item)
                ready.put(found)
        except BaseException as error:  # raised below
            found = Future()
            found.set_exception(error)
            ready.put(found)
        ready.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (entry := ready.get()) is not None:
        yield entry.result()
