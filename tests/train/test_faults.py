"""Which faults end a training run, and what is said of each."""

import os
import pickle
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from unet.data.image import ImageError
from unet.settings import RequestError
from unet.storage.faults import Denied, Full, Unreachable
from unet.train.faults import WorkerFault, fault_of, may_pass, naming_faults, worker_fault
from unet.train.loss import LossSums
from unet.train.measure import ask_worker


def raised(error: Exception) -> Exception:
    """What a worker raises in which `error` is."""

    def worker(config: Any) -> None:
        raise error

    with pytest.raises(Exception) as caught:  # noqa: PT011
        naming_faults(worker)(None)
    copy: Exception = pickle.loads(pickle.dumps(caught.value))  # as it comes from another process
    return copy


def fault(*errors: Exception) -> str | None:
    """What is said of workers that end like this."""
    found = fault_of(WorkerGroupError("", dict(enumerate(map(raised, errors)))))
    return None if found is None else str(found)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Expected more than 1 value per channel"),
        TypeError("Muon() got an unexpected keyword argument 'adjust_lr_fn'"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RequestError("masks/3.png: holds the value 9"),
        Denied("s3://b/k", "no (AccessDenied)"),
        Full("s3://b/k", "the storage is full"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_promise_42_what_would_come_again_ends_a_run(error: Exception) -> None:
    assert fault(error) is not None
    assert fault(error, RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer")) is not None


@pytest.mark.parametrize(
    "error",
    [
        RayActorError(),
        NodeDiedError("the node is dead"),
        OutOfMemoryError("the node ran low on memory"),
        ConnectionResetError("peer"),
        Unreachable("s3://b/k", "no answer"),
        torch.distributed.DistBackendError("NCCL communicator was aborted"),
        RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert fault(error) is None
    assert fault(error, RequestError("masks/3.png: holds the value 9")) == "masks/3.png: holds the value 9"


def test_what_happens_beside_a_worker_that_died_may_be_of_its_death() -> None:
    assert fault(ValueError("half a batch"), RayActorError()) is None


def test_the_line_says_what_where_and_keeps_the_traceback() -> None:
    def worker(config: Any) -> None:
        LossSums.zeros("two", torch.device("cpu"))  # type: ignore[arg-type]

    with pytest.raises(WorkerFault) as caught:
        naming_faults(worker)(None)
    line = str(caught.value)
    assert line.startswith("TypeError: ")
    assert "(unet/train/loss.py:" in line
    assert "\n" not in line
    assert caught.value.traceback.startswith("Traceback (most recent call last)")
    assert "in worker" in caught.value.traceback


def test_a_long_message_is_cut() -> None:
    assert len(fault(ValueError("word " * 1000)) or "") < 400


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "a GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "a GPU"),
        (MemoryError("Unable to allocate 3 GiB for an array"), "a machine"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), "a machine"),
    ],
)
def test_out_of_memory_names_what_can_be_lowered(error: Exception, whose: str) -> None:
    assert f"a step does not fit in the memory of {whose}" in str(fault(error))
    assert "lower --batch-size, or --size or --crop, or raise --accumulate" in str(fault(error))

    namespace: dict[str, Any] = {"error": error}
    source = "def _validate(config):\n    raise error\n"
    exec(compile(source, "/somewhere/unet/train/loop.py", "exec"), namespace)
    with pytest.raises(WorkerFault, match=f"a validation image does not fit in the memory of {whose}.*--val-data"):
        naming_faults(namespace["_validate"])(None)


def test_a_missing_compiler_has_a_remedy() -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    assert "leave --compile out" in str(fault(InvalidCxxCompiler()))


@pytest.mark.usefixtures("one_ray")
def test_a_fault_of_a_task_is_named_as_it_was_raised_there() -> None:
    @ray.remote(num_cpus=0)
    def task(error: Exception) -> None:
        raise error

    def of_task(error: Exception) -> Exception:
        with pytest.raises(type(error)) as caught:
            ray.get(task.remote(error))
        return caught.value

    assert str(worker_fault(of_task(ImageError("a.png: is cut short")))).endswith("ImageError: a.png: is cut short")
    assert not may_pass(of_task(KeyError("x")))
    assert may_pass(of_task(Unreachable("s3://b/k", "no answer")))
    assert isinstance(fault_of(ControllerError(of_task(ValueError("of an older torch")))), WorkerFault)
    assert fault_of(ControllerError(RayActorError())) is None


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (RequestError("masks/3.png: holds the value 9"), RequestError, "masks/3.png: holds the value 9"),
        (ImageError("a.png: is cut off"), RequestError, "a.png: is cut off"),
        (Unreachable("s3://b/k", "no answer"), Unreachable, "s3://b/k: no answer"),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), WorkerFault, "does not fit in the memory of a machine"),
        (None, WorkerFault, "worker died"),
    ],
    ids=str,
)
def test_what_ends_the_measuring_of_a_plan_is_one_line(error: Exception | None, kind: type, line: str) -> None:
    def measured() -> None:
        if error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise error

    run: Any = SimpleNamespace(reserved={"CPU": 1})
    with pytest.raises(kind) as caught:
        ask_worker(run, measured)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
