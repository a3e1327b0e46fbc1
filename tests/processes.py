"""The processes of this machine, by /proc."""

import os
from contextlib import suppress
from pathlib import Path


def descendants(process: int) -> list[int]:
    """Return all processes that stem from this one."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def processes_naming(folder: Path) -> list[int]:
    """Return the processes that have `folder` on their command line or in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            text = process.joinpath("cmdline").read_bytes() + process.joinpath("environ").read_bytes()
            if str(folder).encode() in text and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def command_line(process: int) -> bytes:
    """Return the arguments of a process, each ended by NUL; nothing if it has ended. Ray puts a task's name there."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""
