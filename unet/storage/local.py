"""A local folder as a store: files are replaced atomically, and listed in order of key."""

import errno
import io
import os
import shutil
import stat
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from unet.storage.faults import Changed, Denied, Full, StorageError, Vanished
from unet.storage.objects import Guard, ObjectInfo, Page, join_uri, no_guard, to_table

SMALL_BYTES = 1 << 20
"""A file of as many bytes at most is read when it is opened: folders may lie on other machines."""

PAGE_SIZE = 1000
"""Files in a page of a listing."""

SCANS_AHEAD = 16
"""Folders of a folder that are scanned at a time, since each may take the time of a network."""

Scan = tuple[tuple[int, int], list[str]]
"""Device and inode of a folder, and what is in it, sorted; the names of folders end in a slash."""

MAX_NAME_BYTES = 255
"""Length of a file name in the common file systems."""

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".unet-", ".part"
"""How the name of a file begins and ends while it is being written."""


class LocalStore:
    """The files below a local folder, as `Store`. Links are followed. An etag is mtime [ns], size and inode."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._folder = os.path.abspath(uri)  # a worker that unpickles this store has another current folder

    def list(self, after: str = "", until: str | None = None) -> Iterator[Page]:
        scanners = ThreadPoolExecutor(SCANS_AHEAD)
        try:
            keys = self._walk("", scanners.submit(self._scan, ""), scanners, frozenset(), after, until)
            while batch := tuple(islice(keys, PAGE_SIZE)):
                page = []
                for key in batch:
                    with suppress(Vanished):  # deleted since its folder was read
                        page.append(self.head(key))
                if page:
                    yield page
        finally:
            scanners.shutdown(wait=False, cancel_futures=True)

    def list_tables(self, after: str = "", until: str | None = None) -> Iterator[pa.Table]:
        return map(to_table, self.list(after, until))

    def head(self, key: str) -> ObjectInfo:
        with translate_errors(join_uri(self.uri, key)):
            return self._info(key, os.stat(self._path(key)))

    def get(self, key: str, etag: str | None = None) -> bytes:
        with translate_errors(join_uri(self.uri, key)), open(self._path(key), "rb") as file:
            before = self._info(key, os.fstat(file.fileno()))
            data = file.read()
            after = self._info(key, os.fstat(file.fileno()))
        if after != before or etag not in (None, before.etag):
            raise Changed(join_uri(self.uri, key), "is no longer what was listed")
        return data

    def open(self, key: str) -> BinaryIO:
        """Return a file to read from at any place; a small one has been read. Raise Vanished if there is none."""
        with translate_errors(join_uri(self.uri, key)):
            if self.head(key).size <= SMALL_BYTES:
                return io.BytesIO(self.get(key))
            return open(self._path(key), "rb", buffering=0)

    def put(
        self,
        key: str,
        data: bytes,
        *,
        metadata: Mapping[str, str] = {},
        expected_etag: str | None = None,
        guard: Guard = no_guard,
    ) -> str:
        """As `Store.put`; `metadata` is not stored.

        `expected_etag` is compared before the write, not in one step with it: a lock keeps other runs out of a local
        output.
        """
        guard()
        if expected_etag is not None and self._etag(key) != expected_etag:
            raise Changed(join_uri(self.uri, key), "is no longer what was seen")
        return self._replace(key, lambda file: file.write(data))

    def put_file(self, key: str, path: Path) -> None:
        with path.open("rb") as source:
            self._replace(key, lambda file: shutil.copyfileobj(source, file))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(Vanished), translate_errors(join_uri(self.uri, key)):
                os.unlink(self._path(key))

    def key_error(self, key: str) -> str | None:
        """As `Store.key_error`; also where `key` would name the file of another key."""
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
        if longest > MAX_NAME_BYTES:
            return f"has a part of {longest} bytes; a file name holds {MAX_NAME_BYTES}"
        return "is a name of files being written" if _is_temporary(parts[-1]) else None

    def _walk(
        self,
        prefix: str,
        scan: "Future[Scan | None]",
        scanners: ThreadPoolExecutor,
        ancestors: frozenset[tuple[int, int]],
        after: str,
        until: str | None,
    ) -> Iterator[str]:
        """Yield the keys below `prefix`, sorted, that come after one, up to another. `prefix` is empty or ends in a
        slash; `scan`: of it.

        `ancestors`: device and inode of the folders above; a link to one of them is not followed, or the walk would
        never end. Of each folder on the way, SCANS_AHEAD of those in it are scanned before their turn.
        """
        found = scan.result()
        if found is None or found[0] in ancestors:
            return
        keys = [prefix + name for name in found[1] if _may_follow(prefix + name, after)]
        keys = keys if until is None else [key for key in keys if key <= until]
        waiting, ahead = (key for key in keys if key.endswith("/")), deque["Future[Scan | None]"]()
        for key in keys:
            if key.endswith("/"):
                ahead.extend(scanners.submit(self._scan, one) for one in islice(waiting, SCANS_AHEAD - len(ahead)))
                yield from self._walk(key, ahead.popleft(), scanners, ancestors | {found[0]}, after, until)
            else:
                yield key

    def _scan(self, prefix: str) -> "Scan | None":
        """Return device and inode of a folder, and the names in it; None if there is no such folder."""
        path = os.path.join(self._folder, prefix)
        with translate_errors(join_uri(self.uri, prefix)), suppress(FileNotFoundError, NotADirectoryError):
            status = os.stat(path)
            with os.scandir(path) as entries:
                names = sorted(filter(None, map(_name_of, entries)))
            return (status.st_dev, status.st_ino), names  # with its slash, a folder sorts where its keys do
        return None

    def _replace(self, key: str, write: Callable[[BinaryIO], object]) -> str:
        """Make or replace a file atomically, with what `write` writes; return its etag.

        The bytes are on the disk before the name is: a power cut leaves the file of before or the whole new one.
        """
        target = self._path(key)
        parent = os.path.dirname(target)
        temporary = os.path.join(parent, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
        with translate_errors(join_uri(self.uri, key), missing=()):
            os.makedirs(parent, exist_ok=True)
            try:
                with open(temporary, "xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                info = self._info(key, os.stat(temporary))
                os.replace(temporary, target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        _sync_folder(parent)
        return info.etag

    def _path(self, key: str) -> str:
        if (reason := self.key_error(key)) is not None:
            raise StorageError(join_uri(self.uri, key), reason)
        return os.path.join(self._folder, key)

    def _etag(self, key: str) -> str:
        try:
            return self.head(key).etag
        except Vanished:
            return ""

    def _info(self, key: str, status: os.stat_result) -> ObjectInfo:
        if not stat.S_ISREG(status.st_mode):
            raise Vanished(join_uri(self.uri, key), "is no file")
        return ObjectInfo(key, status.st_size, f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}")


def _name_of(entry: "os.DirEntry[str]") -> str | None:
    """Return the name of a file, or of a folder with a slash; None for what is neither, as a link to itself."""
    try:
        return entry.name + "/" if entry.is_dir() else entry.name if entry.is_file() else None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return None


def _may_follow(key: str, after: str) -> bool:
    """Return whether a file comes after a key, or a folder may hold one that does."""
    if key.endswith("/"):
        return key >= after or after.startswith(key)
    return key > after and not _is_temporary(key.rpartition("/")[2])


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def _sync_folder(path: str) -> None:
    """Write the names in a folder to the disk, where its file system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def translate_errors(
    uri: str,
    missing: tuple[type[OSError], ...] = (FileNotFoundError, NotADirectoryError, IsADirectoryError),
) -> Iterator[None]:
    """Raise a StorageError about `uri` in place of an OSError from inside; Vanished in place of those in `missing`."""
    try:
        yield
    except StorageError:
        raise
    except missing as error:
        raise Vanished(uri, error.strerror or "there is no such file") from None
    except PermissionError as error:
        raise Denied(uri, error.strerror or "permission denied") from None
    except OSError as error:
        kind = Full if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(uri, error.strerror or type(error).__name__) from None
