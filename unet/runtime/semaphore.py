"""A semaphore whose holders have weights."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class WeightedSemaphore:
    """Lets holders in while their weights add up to `capacity` at most; a heavier one is let in alone.

    One waits at a time, and those behind it for their turn: a heavy one is not passed by for ever.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self._held = capacity, 0
        self._turn, self._released = threading.Lock(), threading.Condition()

    def acquire(self, weight: int) -> None:
        """Wait until there is room for `weight`, and take it."""
        with self._turn, self._released:
            self._released.wait_for(lambda: not self._held or self._held + weight <= self.capacity)
            self._held += weight

    def release(self, weight: int) -> None:
        """Give back what `acquire` took."""
        with self._released:
            self._held -= weight
            self._released.notify_all()

    @contextmanager
    def hold(self, weight: int) -> Iterator[None]:
        """Acquire `weight` for a `with` block."""
        self.acquire(weight)
        try:
            yield
        finally:
            self.release(weight)
