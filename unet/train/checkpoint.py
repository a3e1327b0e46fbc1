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

from unet.runtime.priority import yield_to_training
from unet.storage import store
from unet.storage.faults import Damaged, Denied, StorageError, Vanished
from unet.storage.listed import join

KEPT = 2

State = dict[str, Any]

_NAME = re.compile(r"step-\d{9}-[0-9a-f]{16}\.pt")


class Checkpoints:
    """The checkpoints of the run in `folder`. As a context it waits at the end for what is being written."""

    def __init__(self, folder: str) -> None:
        self._folder = join(folder, "checkpoints")
        self._pool = ThreadPoolExecutor(1, initializer=yield_to_training)
        self._writing: Future[None] | None = None
        self._file = _Memory()

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
        self._file.rewind()
        torch.save(state, self._file)  # type: ignore[arg-type]
        self._writing = self._pool.submit(self._write, step, self._file.content())

    def latest(self) -> str | None:
        """The name of the latest whole checkpoint; None if there is none. Raises: StorageError."""
        for name in sorted(self._names(), reverse=True):
            if self._read(name) is not None:
                return name
            print(f"{join(self._folder, name)}: is damaged; going on from the one before it", flush=True)
        return None

    def load(self, name: str, device: torch.device | str = "cpu") -> State:
        """The state of a name, its tensors on `device`. Raises: StorageError."""
        data = self._read(name)
        if data is None:
            raise StorageError(join(self._folder, name), "is damaged, or seen by some workers only")
        return dict(torch.load(io.BytesIO(data), weights_only=True, map_location=device))

    def _read(self, name: str) -> bytes | None:
        """The bytes of a checkpoint, if they are what its name says."""
        try:
            data = store.read(join(self._folder, name))
        except (Damaged, Vanished):
            return None
        return data if hashlib.sha256(data).hexdigest()[:16] == name[-19:-3] else None

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, data: memoryview) -> None:
        digest = hashlib.sha256(data).hexdigest()[:16]
        store.write(join(self._folder, f"step-{step:09}-{digest}.pt"), data)
        with suppress(Denied):  # to remove files is a right that no job needs
            store.open_store(self._folder).delete(sorted(self._names())[:-KEPT])

    def _names(self) -> list[str]:
        return [name for name in store.list_files(self._folder) if _NAME.fullmatch(name)]


class _Memory:
    """A file in memory that one checkpoint after the other is put together in. Its pages are not the heap's: there a
    checkpoint would have the place of activations, and the next steps would have to find other pages for those."""

    def __init__(self) -> None:
        self._pages = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)

    def write(self, data: memoryview) -> None:
        end = self._pages.tell() + len(data)
        if end > len(self._pages):
            larger = mmap.mmap(-1, 2 * end, flags=mmap.MAP_PRIVATE)  # what is never written to takes no memory
            larger.write(self.content())
            self._pages = larger
        self._pages.write(data)

    def flush(self) -> None:
        """Nothing waits; a file has this."""

    def rewind(self) -> None:
        self._pages.seek(0)

    def content(self) -> memoryview:
        """What has been written since `rewind`, and is there until the next."""
        return memoryview(self._pages)[: self._pages.tell()]
