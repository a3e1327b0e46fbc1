"""Checkpoints of a training run: files in its `checkpoints/`, each the whole state after some step.

A checkpoint is one object, whole or absent, and its name carries the digest of its bytes: a damaged one is passed over
for the one before it. Those of two steps are kept, of each step the last that was written. Files are written beside
training, one at a time.
"""

import hashlib
import io
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch

from unet.storage import store
from unet.storage.faults import Damaged, Denied, StorageError, Vanished
from unet.storage.objects import join_uri
from unet.train.faults import Superseded
from unet.train.resume import CHECKPOINTS, checkpoint_names, read_identity

KEPT = 2

State = dict[str, Any]


class Checkpoints:
    """The checkpoints of the run in `folder`. As a context it waits at the end for what is being written. `driver`: the
    one whose run it has to be still when one is saved."""

    def __init__(self, folder: str, driver: str | None = None) -> None:
        self._run, self._driver, self._folder = folder, driver, join_uri(folder, CHECKPOINTS)
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            with suppress(*(() if kind is None else (StorageError,))):  # what ended the run is what is said
                self._wait()
        finally:
            self._pool.shutdown()

    def save(self, step: int, state: State) -> None:
        """Begin to write the state after `step`; `state` may change as soon as this returns.

        Raises:
            StorageError: the one before could not be written.
            Superseded: the run is another driver's by now.
        """
        self._wait()
        self.check_driver()
        torch.serialization.set_crc32_options(False)  # the digest is check enough, and training waits for this
        file = io.BytesIO()
        torch.save(state, file)
        self._writing = self._pool.submit(self._write, step, file.getvalue())

    def check_driver(self) -> None:
        """Raise Superseded if the run is another driver's by now."""
        if self._driver is not None and read_identity(self._run).get("driver") != self._driver:
            raise Superseded(
                f"{self._run}: another command has begun to train here since, and goes on; give each run a --name"
            )

    def latest(self) -> str | None:
        """Return the name of the latest whole checkpoint; None if there is none. Raise StorageError."""
        for name in sorted(checkpoint_names(self._folder), reverse=True):
            if self._read(name) is not None:
                return name
            print(f"{join_uri(self._folder, name)}: is damaged; going on from the one before it", flush=True)
        return None

    def load(self, name: str, device: torch.device | str = "cpu") -> State:
        """Return the state of a name, its tensors on `device`. Raise StorageError."""
        data = self._read(name)
        if data is None:
            raise StorageError(join_uri(self._folder, name), "is damaged, or seen by some workers only")
        return dict(torch.load(io.BytesIO(data), weights_only=True, map_location=device))

    def _read(self, name: str) -> bytes | None:
        """Return the bytes of a checkpoint if they have the digest in its name."""
        try:
            data = store.read(join_uri(self._folder, name))
        except (Damaged, Vanished):
            return None
        return data if hashlib.sha256(data).hexdigest()[:16] == name[-19:-3] else None

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, data: bytes) -> None:
        begin = f"step-{step:09}-"
        name = f"{begin}{hashlib.sha256(data).hexdigest()[:16]}.pt"
        store.write(join_uri(self._folder, name), data)
        names = sorted(checkpoint_names(self._folder))
        replaced = [other for other in names if other.startswith(begin) and other != name]
        with suppress(Denied):  # to remove files is a right that no job needs
            kept = [other for other in names if other not in replaced][-KEPT:]
            store.open_store(self._folder).delete([other for other in names if other not in kept])
