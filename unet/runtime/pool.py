"""A pool of workers: actors of Ray that each hold a few tasks at a time, and tell of what is finished within a second.

A task that is lost with its worker is given to another one, by itself: so a task that ends its workers is found, and no
other is blamed for it. The pool grows with the tasks at hand, and by the machines that come.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import ray

from unet.runtime.session import capacity, connect
from unet.settings import RequestError

HELD_SECONDS, MOST_HELD = 2.0, 1024
"""A worker holds as many tasks as it finishes in so many seconds, and at most so many."""

REPLY_SECONDS, NEXT_REPLY_SECONDS = 1.0, 0.3
"""A worker replies after so many seconds at most, and so soon if a task is finished by then."""

MAX_ALONE = 2
"""Workers that must end while they hold one task alone before it is given up. One may end by chance, as with a machine
that is taken away."""

GROUPS = 8
"""Into so many groups the tasks of a lost worker are parted, and those of a group that ends its worker again."""

MAX_FAILED_STARTS = 3
"""Workers that end one after another before they have replied once, before the pool gives up."""

STOP_SECONDS = 2 * NEXT_REPLY_SECONDS
"""Seconds for which a pool that is stopped waits for what its workers have finished."""

IDLE_SECONDS, MAX_IDLE_SECONDS = 0.2, 60.0
"""Seconds for which the pool waits for anything to happen, and after which a worker without a task is ended."""

LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
)
"""How Ray says that a worker has ended, or its machine, and a reply may be gone with it."""


class WorkerSettings(Protocol):
    """Settings that say how many workers."""

    @property
    def gpu(self) -> bool:
        """Whether each has a GPU."""

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Least and most, if --workers says."""


def connect_workers(settings: WorkerSettings) -> tuple[int, int]:
    """Connect to Ray. Return least and most workers: what --workers says, or up to one for each CPU or GPU that the
    cluster has or may grow to.

    Raises:
        RequestError: --gpu without a GPU.
    """
    connect(worker_output=False)
    kind = "GPU" if settings.gpu else "CPU"
    available = capacity(kind)
    if settings.gpu and not available and settings.worker_range is None:
        raise RequestError("--gpu: the cluster has no GPU; leave the flag out, or give --workers to wait for some")
    return settings.worker_range or (1, max(1, available))


class TaskQueue:
    """Tasks that one thread finds and a pool takes, `most` of them at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: deque[Any] = deque()
        self._changed = threading.Condition()
        self.closed = False
        """Whether no more tasks will come."""
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def ended(self) -> bool:
        """Whether all tasks have been taken. Raise what ended the search for them."""
        with self._changed:
            if self.closed and not self._tasks and self._error is not None:
                raise self._error
            return self.closed and not self._tasks

    def put(self, tasks: Sequence[Any]) -> None:
        """Add tasks, once there is room. Raise RuntimeError if the queue was closed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._tasks) < self._most or self.closed)
            if self.closed:
                raise RuntimeError("the queue is closed")
            self._tasks.extend(tasks)
            self._changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """Say that there are no more tasks, or why the search for them ended early."""
        with self._changed:
            self.closed, self._error = True, self._error or error
            self._changed.notify_all()

    def take(self, most: int, sharers: int) -> list[Any]:
        """Return up to `most` of the tasks at hand; of the last ones only their share for each of `sharers`."""
        with self._changed:
            share = math.ceil(len(self._tasks) / sharers) if self.closed else len(self._tasks)
            taken = [self._tasks.popleft() for _ in range(min(most, share))]
            self._changed.notify_all()
            return taken

    def wait(self, seconds: float | None = None) -> None:
        """Wait until there is a task, or no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self.closed, seconds)


class Worker:
    """A process of the pool. Subclasses say what becomes of a task."""

    def __init__(self) -> None:
        self._finished: SimpleQueue[tuple[int, Future[Any]]] = SimpleQueue()
        self._held = 0

    def submit(self, task: Any) -> "Future[Any]":
        """Begin a task. What its future raises ends the run."""
        raise NotImplementedError

    def exchange(self, tasks: Sequence[tuple[int, Any]], message: Any) -> list[tuple[int, Any]]:
        """Begin numbered tasks; return results that are finished, or what was raised in their place, soon or after
        REPLY_SECONDS. `message`: of the driver, composed after it had the last reply."""
        for number, task in tasks:
            self.submit(task).add_done_callback(partial(self._note, number))
        self._held += len(tasks)
        results: list[tuple[int, Any]] = []
        started, enough = time.monotonic(), self._held / 2
        while self._held and (len(results) < enough or not self._finished.empty()):
            limit = NEXT_REPLY_SECONDS if results else REPLY_SECONDS
            try:
                number, future = self._finished.get(timeout=max(0.0, started + limit - time.monotonic()))
            except Empty:
                break
            self._held -= 1
            # As a value: Ray prints a fault that nobody asks for, as where several workers meet it.
            results.append((number, future.exception() or future.result()))
        return results

    def _note(self, number: int, future: "Future[Any]") -> None:
        self._finished.put((number, future))


@dataclass(eq=False)
class _Task:
    content: Any
    ended_alone: int = 0
    """Workers that ended while they held this task alone."""


@dataclass(eq=False)
class _Member:
    """A worker as the driver sees it."""

    actor: Any
    failures: int
    """Of the pool's starts, when this one was made."""
    held: dict[int, _Task] = field(default_factory=dict)
    suspected: bool = False
    """Whether it holds tasks that were lost with another worker, and nothing else."""
    replied: bool = False
    since: float = field(default_factory=time.monotonic)
    """Time of the last exchange."""
    rate: float = 0.0
    """Tasks a second, of late."""


class WorkerPool:
    """Least to most workers, `worker(*arguments)` each, with a GPU or with one CPU.

    `least_held`: tasks that a worker holds at least; `message`: called for what each exchange tells a worker.
    """

    def __init__(
        self,
        worker: type[Worker],
        arguments: tuple[Any, ...],
        workers: tuple[int, int],
        *,
        gpu: bool,
        least_held: int = 2,
        message: Callable[[], Any] = lambda: None,
    ) -> None:
        resources = {"num_cpus": 0, "num_gpus": 1} if gpu else {"num_cpus": 1}
        self._actor = ray.remote(worker).options(scheduling_strategy="SPREAD", **resources)
        self._arguments, self._range = arguments, workers
        self._least_held, self._message = least_held, message
        self._members: list[_Member] = []
        self._calls: dict[Any, _Member] = {}
        """Exchanges that go on; a member has one, or is idle."""
        self._suspects: deque[list[_Task]] = deque()
        """Tasks that were lost with a worker, in groups of which each is given to a worker by itself."""
        self._faults: list[BaseException] = []
        """What tasks have raised: the first of it ends the run, once what came with it has been yielded."""
        self._number = self._failed_starts = 0
        self._stopped, self._drained = threading.Event(), threading.Event()

    def process(self, queue: TaskQueue) -> Generator[list[tuple[Any, Any]], None, None]:
        """Yield tasks with their results, as they come, and [] now and then where none come; None in place of the
        result of a task that ends its workers."""
        try:
            while self._suspects or any(member.held for member in self._members) or not queue.ended:
                if not self._stopped.is_set():
                    self._scale(queue)
                for member in set(self._members) - set(self._calls.values()):
                    self._give(member, queue)
                if not self._calls:
                    if self._stopped.is_set():
                        self._drained.set()
                        threading.Event().wait()  # for the end of this process
                    queue.wait(IDLE_SECONDS)
                    yield []
                    continue
                ready, _ = ray.wait(list(self._calls), timeout=IDLE_SECONDS)
                yield [result for call in ready for result in self._results(call, self._calls.pop(call))]
                if self._faults:
                    raise self._faults[0]
        finally:
            self.kill()

    def stop(self) -> None:
        """End all workers for good, from another thread: each after its reply, so that `process` yields what is
        finished. Then it yields nothing more, for this process is to end."""
        self._stopped.set()
        self._drained.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End all workers."""
        for member in self._members:
            ray.kill(member.actor)

    def _scale(self, queue: TaskQueue) -> None:
        """Start workers for the tasks at hand; end those above the least number that have had none for long."""
        least, most = self._range
        tasks = len(queue) + sum(map(len, self._suspects)) + sum(len(member.held) for member in self._members)
        for _ in range(max(least, min(most, tasks)) - len(self._members)):
            member = _Member(self._actor.remote(*self._arguments), self._failed_starts)
            self._members.append(member)
            self._calls[member.actor.exchange.remote([], None)] = member  # which is answered once it has started
        idle = [member for member in self._members if not member.held and member not in self._calls.values()]
        for member in idle[: len(self._members) - least]:
            if time.monotonic() - member.since > MAX_IDLE_SECONDS:
                self._remove(member)

    def _give(self, member: _Member, queue: TaskQueue) -> None:
        """Begin an exchange with a worker, unless it has nothing to do. Suspects go first, a group to a worker whose
        hands are empty, and nothing with them. After a stop, end the worker."""
        if self._stopped.is_set():
            ray.kill(member.actor)
            return
        tasks: list[_Task] = []
        if not member.held:
            member.suspected = bool(self._suspects)
            tasks = self._suspects.popleft() if self._suspects else []
        if not member.suspected and not self._suspects:
            room = min(MOST_HELD, max(self._least_held, math.ceil(HELD_SECONDS * member.rate))) - len(member.held)
            sharers = sum(member.replied for member in self._members)
            tasks = [_Task(content) for content in queue.take(max(0, room), sharers)]
        if not tasks and not member.held:
            return
        numbered = dict(enumerate(tasks, self._number))
        self._number += len(tasks)
        member.held |= numbered
        member.since = time.monotonic()
        given = [(number, task.content) for number, task in numbered.items()]
        self._calls[member.actor.exchange.remote(given, self._message())] = member

    def _results(self, call: Any, member: _Member) -> list[tuple[Any, Any]]:
        """Return tasks and results of a worker's reply, or what becomes of its tasks if it has ended."""
        try:
            finished = ray.get(call)
        except LOST as error:
            if self._stopped.is_set():
                threading.Event().wait()  # no task is to be blamed for what `stop` did
            self._remove(member)  # also if it is only cut off
            return self._lost(member, error)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        if member.replied:
            member.rate = (member.rate + len(finished) / max(1e-3, time.monotonic() - member.since)) / 2
        member.replied, member.since = True, time.monotonic()
        self._failed_starts = 0
        self._faults += [result for _, result in finished if isinstance(result, BaseException)]
        settled = [(number, result) for number, result in finished if not isinstance(result, BaseException)]
        return [(member.held.pop(number).content, result) for number, result in settled]

    def _remove(self, member: _Member) -> None:
        self._members.remove(member)
        ray.kill(member.actor)

    def _lost(self, member: _Member, error: Exception) -> list[tuple[Any, Any]]:
        """Take the tasks of a lost worker for suspects, in groups; return those that are given up."""
        if not member.replied and member.failures == self._failed_starts:  # not for the same cause as another
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise error
        tasks = list(member.held.values())
        if len(tasks) == 1:
            tasks[0].ended_alone += not getattr(error, "preempted", False)
            if tasks[0].ended_alone >= MAX_ALONE:
                return [(tasks[0].content, None)]
        size = max(1, len(tasks) // GROUPS)
        self._suspects.extend(tasks[first : first + size] for first in range(0, len(tasks), size))
        return []
