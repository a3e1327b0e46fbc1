"""Results made ahead of their use, in order, within a budget."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    function: Callable[[T], R], items: Iterable[T], *, weight: Callable[[T], int], budget: int, threads: int
) -> Iterator[R]:
    """Yield `function` of each item, in order, from threads that work ahead.

    What is under way or waits to be taken weighs `budget` at most; a heavier item is alone.
    """
    pending: deque[tuple[int, Future[R]]] = deque()
    held = 0
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            weighs = weight(item)
            while pending and (held + weighs > budget or len(pending) == threads):
                released, result = pending.popleft()
                yield result.result()
                held -= released
            pending.append((weighs, pool.submit(function, item)))
            held += weighs
        while pending:
            yield pending.popleft()[1].result()
