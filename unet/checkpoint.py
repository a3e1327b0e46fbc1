"""Where a training run goes on: files in its `checkpoints/`, each the whole state after some step.

A checkpoint is one object, whole or absent, and its name carries the digest of its bytes: a damaged one is passed over
for the one before it. Two are kept. Files are written beside training, one at a time.
"""

import hashlib
import io
import mmap
import re
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch

from unet import storage
from unet.priority import yield_to_training
from unet.storage import Damaged, Denied, StorageError, Vanished

KEPT = 2

SPARE = 16 << 20
"""Bytes by which a state may have grown, losses and scores, before it needs another place in memory."""

State = dict[str, Any]

_NAME = re.compile(r"step-\d{9}-[0-9a-f]{16}\.pt")


class Checkpoints:
    """The checkpoints of the run in `folder`. As a context it waits at the end for what is being written."""

    def __init__(self, folder: str) -> None:
        self._folder = storage.join(folder, "checkpoints")
        self._pool = ThreadPoolExecutor(1, initializer=yield_to_training)
        self._writing: Future[None] | None = None
        # Not on the heap: there it would have the place of activations, which the next steps would look for elsewhere.
        self._file = _pages(SPARE)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            with suppress(*(() if kind is None else (StorageError,))):  # what ended the run is what is said
                self._wait()
        finally:
            self._pool.shutdown()

    def begun(self) -> bool:
        """Whether there is any. Raises: StorageError."""
        return bool(self._names())

    def save(self, step: int, state: State) -> None:
        """Begins to write the state after `step`; `state` may change as soon as this returns.

        Raises:
            StorageError: the one before could not be written.
        """
        self._wait()
        torch.serialization.set_crc32_options(False)  # the digest is check enough, and training waits for this
        size = _size(state)
        if size > len(self._file):
            self._file = _pages(size + SPARE)
        self._file.seek(0)
        torch.save(state, self._file)  # type: ignore[arg-type]
        self._writing = self._pool.submit(self._write, step, memoryview(self._file)[:size])

    def latest(self) -> str | None:
        """The name of the latest whole checkpoint; None if there is none. Raises: StorageError."""
        for name in sorted(self._names(), reverse=True):
            if self._read(name) is not None:
                return name
            print(f"{storage.join(self._folder, name)}: is damaged; going on from the one before it", flush=True)
        return None

    def load(self, name: str, device: torch.device | str = "cpu") -> State:
        """The state of a name, its tensors on `device`. Raises: StorageError."""
        data = self._read(name)
        if data is None:
            raise StorageError(storage.join(self._folder, name), "is damaged, or seen by some workers only")
        return dict(torch.load(io.BytesIO(data), weights_only=True, map_location=device))

    def _read(self, name: str) -> bytes | None:
        """The bytes of a checkpoint, if they are what its name says."""
        try:
            data = storage.read(storage.join(self._folder, name))
        except (Damaged, Vanished):
            return None
        return data if hashlib.sha256(data).hexdigest()[:16] == name[-19:-3] else None

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, data: memoryview) -> None:
        digest = hashlib.sha256(data).hexdigest()[:16]
        storage.write(storage.join(self._folder, f"step-{step:09}-{digest}.pt"), data)
        with suppress(Denied):  # to remove files is a right that no job needs
            storage.open_store(self._folder).delete(sorted(self._names())[:-KEPT])

    def _names(self) -> list[str]:
        return [name for name in storage.list_files(self._folder) if _NAME.fullmatch(name)]


class _Counter:
    """A file that only counts what is written to it."""

    size = 0

    def write(self, data: memoryview) -> None:
        self.size += len(data)

    def seek(self, offset: int, whence: int) -> None:
        assert whence == io.SEEK_CUR
        self.size += offset

    def flush(self) -> None:
        pass


def _size(state: State) -> int:
    counter = _Counter()
    torch.save(state, counter)  # type: ignore[arg-type]
    return counter.size


def _pages(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
