"""The pool of workers: each task has one result, whatever ends a worker; no task is blamed for another."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import ray

from unet.runtime import pool as module
from unet.runtime.pool import NEXT_REPLY_SECONDS, TaskQueue, Worker, WorkerPool


class Squares(Worker):
    """Squares numbers, each in so many seconds; some of them end it, and some fail."""

    def __init__(self, seconds: float = 0.0, fatal: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.seconds, self.fatal = seconds, fatal
        self.threads = ThreadPoolExecutor(4)

    def submit(self, task: int) -> "Future[Any]":
        return self.threads.submit(self.square, task)

    def square(self, number: int) -> int:
        time.sleep(self.seconds)
        if number in self.fatal:
            os._exit(1)
        if number < 0:
            raise ValueError("is negative")
        return number * number


class Marks(Squares):
    """Leaves a file for each number that it has squared."""

    def __init__(self, folder: Path) -> None:
        super().__init__(seconds=0.02)
        self.folder = folder

    def square(self, number: int) -> int:
        squared = super().square(number)
        (self.folder / str(number)).touch()
        return squared


class Broken(Worker):
    def __init__(self) -> None:
        raise ValueError("cannot start")


def queue_of(*tasks: int) -> TaskQueue:
    queue = TaskQueue(len(tasks) + 1)
    queue.put(tasks)
    queue.close()
    return queue


def results_of(pool: WorkerPool, queue: TaskQueue) -> dict[int, Any]:
    results = [result for some in pool.process(queue) for result in some]
    assert max(Counter(task for task, _ in results).values()) == 1
    return dict(results)


@pytest.fixture
def free_again(one_ray: None) -> Iterator[None]:
    """After the test the processors are free again."""
    yield
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("free_again")
def test_each_task_has_its_result() -> None:
    pool = WorkerPool(Squares, (), (1, 2), gpu=False)
    assert results_of(pool, queue_of(*range(500))) == {number: number**2 for number in range(500)}


@pytest.mark.usefixtures("free_again")
def test_promise_19_a_task_that_ends_its_worker_late_is_given_up_and_no_other_is() -> None:
    """After longer than a reply takes, by when a worker may have been given more."""
    pool = WorkerPool(Squares, (1.3, (5,)), (2, 2), gpu=False, least_held=8)
    results = results_of(pool, queue_of(*range(12)))
    assert results == {number: number**2 for number in range(12)} | {5: None}


@pytest.mark.usefixtures("free_again")
def test_tasks_that_were_lost_are_done_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[int] = []
    give = WorkerPool._give

    def note(self: WorkerPool, member: Any, queue: TaskQueue) -> None:
        give(self, member, queue)
        if member.suspected:
            lost.append(len(member.held))

    monkeypatch.setattr(WorkerPool, "_give", note)
    pool = WorkerPool(Squares, (0.05, (50,)), (1, 1), gpu=False, least_held=64)
    assert results_of(pool, queue_of(*range(100)))[50] is None
    assert max(lost) >= 4  # an eighth of those that were lost


@pytest.mark.usefixtures("free_again")
def test_what_a_task_raises_ends_the_run() -> None:
    with pytest.raises(ValueError, match="is negative"):
        results_of(WorkerPool(Squares, (), (1, 2), gpu=False), queue_of(1, 2, -1))


def test_what_is_finished_is_told_beside_what_is_raised() -> None:
    worker, told, tasks = Squares(), dict[int, Any](), [(0, 1), (1, 2), (2, -1)]
    while len(told) < 3:
        told |= dict(worker.exchange(tasks, None))
        tasks = []
    assert (told[0], told[1]) == (1, 4)
    assert isinstance(told[2], ValueError)


@pytest.mark.usefixtures("free_again")
def test_workers_that_cannot_start_end_the_run() -> None:
    with pytest.raises(ray.exceptions.RayActorError, match="cannot start"):
        results_of(WorkerPool(Broken, (), (1, 2), gpu=False), queue_of(1, 2))


@pytest.mark.usefixtures("free_again")
def test_a_worker_without_a_task_for_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IDLE_SECONDS", 0.5)
    queue = TaskQueue(100)
    queue.put([1, 2, 3, 4])
    pool, results, most = WorkerPool(Squares, (), (1, 2), gpu=False), dict[int, int](), 0
    for some in pool.process(queue):
        results |= dict(some)
        most = max(most, len(pool._members))
        if len(results) == 4 and len(pool._members) == 1:
            queue.close()
    assert (len(results), most) == (4, 2)


@pytest.mark.usefixtures("free_again")
def test_what_ends_the_search_for_tasks_is_raised_once_all_that_were_found_are_done() -> None:
    queue = TaskQueue(10)
    queue.put([1, 2])
    queue.close(OSError("the listing broke off"))
    results: dict[int, int] = {}
    process = WorkerPool(Squares, (0.3,), (1, 1), gpu=False).process(queue)

    def take_all() -> None:
        for some in process:
            results.update(some)

    with pytest.raises(OSError, match="broke off"):
        take_all()
    assert results == {1: 1, 2: 4}


@pytest.mark.usefixtures("free_again")
def test_no_task_is_blamed_for_a_stop() -> None:
    pool, results = WorkerPool(Squares, (1.0,), (1, 1), gpu=False, least_held=1), list[Any]()
    process = pool.process(queue_of(1, 2, 3))
    reading = threading.Thread(target=lambda: results.extend(some for some in process if some), daemon=True)
    reading.start()
    while not results:
        time.sleep(0.05)
    members = list(pool._members)
    pool.stop()
    time.sleep(2)
    assert reading.is_alive()  # until the process ends
    assert pool._members == members  # none was started in its place, and its task is no suspect


@pytest.mark.usefixtures("free_again")
def test_what_a_worker_has_finished_is_yielded_before_a_stop_ends_it(tmp_path: Path) -> None:
    pool, yielded = WorkerPool(Marks, (tmp_path,), (1, 1), gpu=False, least_held=400), list[Any]()
    process = pool.process(queue_of(*range(2_000)))
    threading.Thread(target=lambda: yielded.extend(chain.from_iterable(process)), daemon=True).start()
    while len(yielded) < 200:
        time.sleep(0.05)
    time.sleep(NEXT_REPLY_SECONDS / 2)  # amid an exchange
    before = len(list(tmp_path.iterdir()))
    pool.stop()
    assert len(yielded) >= before
