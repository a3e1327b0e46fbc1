"""The store of a local folder: whole files or none, whoever writes at the same time, and a listing in order of key."""

import errno
import fcntl
import mmap
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from unet.storage.faults import Changed, Denied, Full, StorageError, Vanished
from unet.storage.listed import Listed, Page, join

PAGE = 1000
"""Files in a page of a local listing."""

LONGEST_NAME = 255
"""Bytes of a file name, by the common file systems."""

OURS = (".unet-", ".part")
"""How the names of files being written begin and end."""

LARGE = 64 << 20
"""Bytes from which a file is written past the kernel's cache. To find pages for so much that nobody reads soon takes up
to a second of a processor for a checkpoint of 0.4 GB, and pushes out what is read."""

DIRECT, STEP = getattr(os, "O_DIRECT", 0), 4 << 20
"""The flag for that, on systems that have it, and how many bytes are written at once."""


class LocalStore:
    """The files below a local folder; hidden ones too, links followed. An etag is mtime [ns], size and inode."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._folder = os.path.abspath(uri)  # a worker that gets this store has another current folder

    def list(self) -> Iterator[Page]:
        """All files, in order of key, as `Store.list`."""
        keys = self._walk("", frozenset())
        while batch := tuple(islice(keys, PAGE)):
            page = []
            for key in batch:
                with suppress(Vanished):  # since its folder was read
                    page.append(self.head(key))
            if page:
                yield page

    def head(self, key: str) -> Listed:
        """The file as it is now. Raises: Vanished, StorageError."""
        with translate_errors(join(self.uri, key)):
            return self._listed(key, os.stat(self._path(key)))

    def get(self, key: str, etag: str | None = None) -> bytes:
        """All bytes, those of `etag` if it is given. Raises: Vanished, Changed, StorageError."""
        with translate_errors(join(self.uri, key)), open(self._path(key), "rb") as file:
            before = self._listed(key, os.fstat(file.fileno()))
            data = file.read()
            after = self._listed(key, os.fstat(file.fileno()))
        if after != before or etag not in (None, before.etag):
            raise Changed(join(self.uri, key), "is no longer what was listed")
        return data

    def put(
        self,
        key: str,
        data: bytes | memoryview,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] = {},
        over: str | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> str:
        """Makes or replaces a file and the folders above it; a file keeps neither content type nor metadata.

        `over` is looked at before, not in the same moment: local outputs have a lock.
        """
        guard()
        if over is not None and self._etag(key) != over:
            raise Changed(join(self.uri, key), "is no longer what was seen")
        return self._replace(key, lambda file: _write(file, memoryview(data)))

    def put_file(self, key: str, path: Path) -> None:
        """Copies a file here. Raises: StorageError, OSError."""
        with path.open("rb") as source:
            self._replace(key, lambda file: shutil.copyfileobj(source, file))

    def delete(self, keys: Iterable[str]) -> None:
        """Removes files; those that are not there are no error. Raises: StorageError."""
        for key in keys:
            with suppress(Vanished), translate_errors(join(self.uri, key)):
                os.unlink(self._path(key))

    def refusal(self, key: str) -> str | None:
        """Why `key` cannot be stored here, or would be the file of another key; None if it can."""
        parts = key.split("/")
        if key.startswith("/") or ".." in parts:
            return "names a path outside the folder"
        if "" in parts or "." in parts:
            return "is empty, or has an empty part or a '.' in its path, which no file can have"
        if "\0" in key:
            return "holds a NUL, which no file name can"
        try:
            longest = max(len(os.fsencode(part)) for part in parts)
        except UnicodeEncodeError:
            return "is not valid Unicode"
        if longest > LONGEST_NAME:
            return f"has a part of {longest} bytes; a file name holds {LONGEST_NAME}"
        return "is a name of files being written" if _is_ours(parts[-1]) else None

    def _walk(self, below: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        """Keys in order. `below` is empty or ends in a slash; a link to a folder of `above` would never end."""
        with translate_errors(join(self.uri, below)):
            try:
                status = os.stat(os.path.join(self._folder, below))
                here = (status.st_dev, status.st_ino)
                if here in above:
                    return
                with os.scandir(os.path.join(self._folder, below)) as entries:
                    names = [
                        entry.name + "/" * entry.is_dir() for entry in entries if entry.is_dir() or entry.is_file()
                    ]
            except (FileNotFoundError, NotADirectoryError):
                return
        names.sort()  # with its slash, a folder lies where its keys do
        for name in names:
            if not name.endswith("/"):
                if not _is_ours(name):
                    yield below + name
            else:
                yield from self._walk(below + name, above | {here})

    def _replace(self, key: str, fill: Callable[[BinaryIO], object]) -> str:
        target = self._path(key)
        parent = os.path.dirname(target)
        temporary = os.path.join(parent, f"{OURS[0]}{uuid.uuid4().hex}{OURS[1]}")
        with translate_errors(join(self.uri, key), absent=()):
            os.makedirs(parent, exist_ok=True)
            try:
                with open(temporary, "xb") as file:
                    fill(file)
                made = self._listed(key, os.stat(temporary))
                os.replace(temporary, target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return made.etag

    def _path(self, key: str) -> str:
        if (reason := self.refusal(key)) is not None:
            raise StorageError(join(self.uri, key), reason)
        return os.path.join(self._folder, key)

    def _etag(self, key: str) -> str:
        try:
            return self.head(key).etag
        except Vanished:
            return ""

    def _listed(self, key: str, status: os.stat_result) -> Listed:
        if not stat.S_ISREG(status.st_mode):
            raise Vanished(join(self.uri, key), "is no file")
        return Listed(key, status.st_size, f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}")


def _write(file: BinaryIO, data: memoryview) -> None:
    written = _write_past_cache(file.fileno(), data) if len(data) >= LARGE else 0
    file.seek(written)
    file.write(data[written:])


def _write_past_cache(file: int, data: memoryview) -> int:
    """Writes from the beginning, as far as the file system takes whole pages like this. Returns how many bytes."""
    flags, written, pages = fcntl.fcntl(file, fcntl.F_GETFL), 0, memoryview(mmap.mmap(-1, STEP))
    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_SETFL, flags | DIRECT)
        while size := min(STEP, (len(data) - written) // mmap.PAGESIZE * mmap.PAGESIZE):
            pages[:size] = data[written : written + size]
            written += os.write(file, pages[:size])
    fcntl.fcntl(file, fcntl.F_SETFL, flags)
    return written


def _is_ours(name: str) -> bool:
    return name.startswith(OURS[0]) and name.endswith(OURS[1])


@contextmanager
def translate_errors(
    uri: str,
    absent: tuple[type[OSError], ...] = (FileNotFoundError, NotADirectoryError, IsADirectoryError),
) -> Iterator[None]:
    """Raises a StorageError about `uri` in place of what the file system raises; `absent` means no such file."""
    try:
        yield
    except StorageError:
        raise
    except absent as error:
        raise Vanished(uri, error.strerror or "there is no such file") from None
    except PermissionError as error:
        raise Denied(uri, error.strerror or "permission denied") from None
    except OSError as error:
        kind = Full if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(uri, error.strerror or type(error).__name__) from None
