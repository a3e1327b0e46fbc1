"""Who gets the processors where training or a pipeline itself runs on them.

A step is as slow as its slowest thread: a process of equal priority beside it costs the step several times its own
time. Linux's SCHED_IDLE runs a process only where nothing else wants to; on other systems nothing is done.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SPARED = b"RayTrainWorker", b"ray::IDLE"
"""In the titles of Ray's processes that train, or may be asked to."""

BYSTANDERS = (
    b"ray::_AutoscalingCoordinator",
    b"ray::ActorLocation",
    b"log_monitor",
    b"dashboard.py",
    b"ray::Dashboard",
)
"""In the titles of Ray's processes that have little or nothing to do while training or a pipeline runs."""

CONTROL = b"gcs_server"
"""In the title of the process that a pipeline asks, and training does not."""


def yield_to_training() -> None:
    """Lets this thread, of a new process all of it, run only on processors that nothing else wants: training out of
    batches leaves enough."""
    if hasattr(os, "SCHED_IDLE") and os.sched_getscheduler(0) != os.SCHED_IDLE:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def take_precedence() -> None:
    """Lets this process, which may have made batches for an earlier attempt, compete for processors again."""
    if hasattr(os, "SCHED_IDLE") and os.sched_getscheduler(0) == os.SCHED_IDLE:
        for thread in Path("/proc/self/task").iterdir():
            try:
                os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))
            except PermissionError:
                print(
                    "warning: this worker may not raise its priority again; training shares with the making of batches"
                )
                return


def silence_siblings() -> None:
    """Lets Ray's other workers on this machine yield too: each wakes a hundred times a second to do nothing. So do the
    bystanders beside the raylet."""
    processes = list(_processes())
    raylet = os.getppid()
    driver = next((parent for process, parent, _ in processes if int(process.name) == raylet), None)
    for process, parent, title in processes:
        worker = parent == raylet and not any(spared in title for spared in SPARED)
        if worker or (parent == driver and any(bystander in title for bystander in (*BYSTANDERS, CONTROL))):
            _silence(process)


def silence_bystanders() -> None:
    """Lets the bystanders yield of a Ray that this process has started for a pipeline."""
    processes = list(_processes())
    parents = {int(process.name): parent for process, parent, _ in processes}
    for process, parent, title in processes:
        if os.getpid() in (parent, parents.get(parent)) and any(bystander in title for bystander in BYSTANDERS):
            _silence(process)


def _processes() -> Iterator[tuple[Path, int, bytes]]:
    """Of all processes of this machine the folder, the parent's number and the title."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int(process.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            yield process, parent, process.joinpath("cmdline").read_bytes()


def _silence(process: Path) -> None:
    with suppress(OSError, AttributeError):  # it has ended; this is no Linux
        for thread in process.joinpath("task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
