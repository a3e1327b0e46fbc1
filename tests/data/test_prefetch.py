"""Results come in order, and no more is under way than the budget allows."""

import threading
import time

import pytest

from unet.data.prefetch import prefetch


class Work:
    """Doubles numbers, and knows the greatest sum and count of those under way or not yet taken."""

    def __init__(self) -> None:
        self.held, self.most, self.heaviest, self.lock = list[int](), 0, 0, threading.Lock()

    def start(self, number: int) -> int:
        with self.lock:
            self.held.append(number)
            self.most, self.heaviest = max(self.most, len(self.held)), max(self.heaviest, sum(self.held))
        time.sleep(0.002)
        return 2 * number

    def take(self, result: int) -> int:
        with self.lock:
            self.held.remove(result // 2)
        return result


def test_results_come_in_order_within_the_budget() -> None:
    work, items = Work(), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 20, 1, 1]
    results = prefetch(work.start, items, weight=lambda item: item, budget=10, threads=4)
    assert [work.take(result) for result in results] == [2 * item for item in items]
    assert work.heaviest == 20  # alone
    assert 2 <= work.most <= 4


def test_what_a_function_raises_is_raised_in_its_place() -> None:
    results = prefetch(lambda item: 1 // item, [1, 0, 1], weight=lambda _: 1, budget=9, threads=2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
