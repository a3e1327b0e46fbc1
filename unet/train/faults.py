"""Which faults end a training run, and the line that is said of each.

A process, a machine or a connection that is lost, and a storage that does not answer, may be there at the next attempt.
Any other exception would come again: it ends the run with one line (what, where, remedy), and its traceback is kept.
"""

import re
import textwrap
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

from ray.exceptions import RayError, RayTaskError, UserCodeException
from ray.train.v2.api.exceptions import TrainingFailedError

from unet.settings import RequestError
from unet.storage.faults import StorageError, Unreachable

Worker = Callable[[Any], None]

LONGEST = 300
"""Characters of an exception's message that the line holds."""

SMALLER_STEP = "lower --batch-size, or --size or --crop, or raise --accumulate"
SMALLER_VALIDATION = "lower --batch-size, validate on smaller images (--val-data), or train a smaller network (--width)"
"""What helps where memory is short."""

_PEER_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)")
"""In the message of a RuntimeError: a collective operation that another worker did not take part in."""

_UNREACHABLE = re.compile(r"^unet\.storage\.faults\.(Unreachable|Damaged): ", re.M)
_RAISED = re.compile(r"^((?!ray\.)[\w.]*[A-Z]\w*(?:: .*)?)$", re.M)
_FRAME = re.compile(r'File ".*?(unet/\w+/\w+\.py)", line (\d+), in (\w+)')


class WorkerFault(Exception):  # noqa: N818
    """An exception that ended a worker and would come again. `str` is its one line, `traceback` all there is to it."""

    def __init__(self, line: str, traceback: str) -> None:
        super().__init__(line, traceback)  # `args`, with which unpickling calls the class again
        self.traceback = traceback

    def __str__(self) -> str:
        return str(self.args[0])


class Superseded(RequestError):  # noqa: N818
    """Another command has begun to train in the same folder."""


def naming_faults(worker: Worker) -> Worker:
    """Return `worker`, raising what ends it as a WorkerFault, unless it may pass or says by itself what to do."""

    @wraps(worker)
    def run(config: Any) -> None:
        try:
            worker(config)
        except Exception as error:
            if may_pass(error) or isinstance(error, RequestError | StorageError):
                raise
            raise worker_fault(error) from None

    return run


def may_pass(error: BaseException) -> bool:
    """Return whether another attempt may do better."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, UserCodeException) or type(cause) is RayError:  # of a task, whose own exception is but text
        return bool(_UNREACHABLE.search(str(error)))
    if isinstance(cause, RayError | ConnectionError | Unreachable) or _is_of_torch(cause, "DistError"):
        return True
    return isinstance(cause, RuntimeError) and bool(_PEER_LOST.search(str(cause)))


def fault_of(error: TrainingFailedError) -> Exception | None:
    """Return the exception that ended a run and would end it again; None if another attempt may do better."""
    causes: list[Exception] = [*getattr(error, "worker_failures", {}).values()]
    for cause in causes:
        if isinstance(cause, RequestError | StorageError) and not may_pass(cause):
            return cause
    if not any(type(cause).__module__.startswith("ray.") for cause in causes):  # else theirs may follow from that loss
        for cause in causes:
            if isinstance(cause, WorkerFault):
                return cause
    failure = getattr(error, "controller_failure", None)
    return worker_fault(failure) if isinstance(failure, RayTaskError) and not may_pass(failure) else None


def reason_of(error: TrainingFailedError) -> str:
    """Return why workers were lost, as Ray's last line has it, and what helps if it did so to free memory."""
    text = str(error).strip()
    remedy = f"; {SMALLER_STEP}" if re.search("low on memory|OutOfMemory", text) else ""
    return textwrap.shorten(text.splitlines()[-1], LONGEST) + remedy


def worker_fault(error: Exception) -> WorkerFault:
    """Return what is said of an exception."""
    text = re.sub(r"\x1b\[\d+m", "", "".join(traceback.format_exception(error)))
    what = "".join(traceback.format_exception_only(error)).splitlines()[0]
    if isinstance(error, RayTaskError):
        what = [what, *_RAISED.findall(text)][-1]
    frames = _FRAME.findall(text)
    where = "" if not frames else " ({}:{})".format(*frames[-1])
    memory = _memory_that_is_short(error, what)
    if memory is None:
        return WorkerFault(textwrap.shorten(what, LONGEST) + where + _remedy(error), text)
    validating = any("validate" in function for _, _, function in frames)
    doing, remedy = ("a validation image", SMALLER_VALIDATION) if validating else ("a step", SMALLER_STEP)
    return WorkerFault(f"{doing} does not fit in the memory of {memory}{where}; {remedy}", text)


def _is_of_torch(error: BaseException, name: str) -> bool:
    """Return whether it is an exception of PyTorch's of this name; the driver does not import PyTorch for this."""
    return any(kind.__name__ == name and kind.__module__.startswith("torch") for kind in type(error).__mro__)


def _memory_that_is_short(error: Exception, what: str) -> str | None:
    """Return whose memory an allocation exceeded; None if that is not what happened."""
    if _is_of_torch(error, "OutOfMemoryError") or re.search("CUDA error: out of memory|_ALLOC_FAILED", what):
        return "a GPU"
    short = isinstance(error, MemoryError) or re.search(r"DefaultCPUAllocator: can't allocate|MemoryError\b", what)
    return "a machine" if short else None


def _remedy(error: Exception) -> str:
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return "; leave --compile out, or install a C++ compiler on every machine"
    return ""
