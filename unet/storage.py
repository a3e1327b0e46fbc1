"""Where files live: one small interface over a local folder and an S3 bucket, and the same by URI.

A URI is a local path or s3://bucket/prefix. Keys are relative to a folder and use forward slashes. A write is whole or
absent, and a read is whole or raises: no reader ever sees half a file. No key names a path outside its folder.
"""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

from unet.s3 import RETRY_FOR, S3Store, split
from unet.settings import RequestError
from unet.stored import (
    BadCredentials,
    Changed,
    Damaged,
    Denied,
    Full,
    Listed,
    NoSuchFolder,
    Page,
    StorageError,
    Unreachable,
    Unsupported,
    Vanished,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "RETRY_FOR",
    "BadCredentials",
    "Changed",
    "Damaged",
    "Denied",
    "Full",
    "Listed",
    "LocalStore",
    "NoSuchFolder",
    "Page",
    "S3Store",
    "StorageError",
    "Store",
    "Unreachable",
    "Unsupported",
    "Vanished",
    "check_readable",
    "check_writable",
    "contains",
    "exists",
    "join",
    "list_files",
    "open_store",
    "read",
    "translated",
    "with_absolute_paths",
    "write",
]

Settings = TypeVar("Settings", bound="DataclassInstance")

CHECK_FOR = 5.0
"""Seconds for which a request that fails is repeated before a job begins."""

PAGE = 1000
"""Files in a page of a local listing."""

LONGEST_NAME = 255
"""Bytes of a file name, by the common file systems."""

OURS = (".unet-", ".part")
"""How the names of files being written begin and end."""


class Store(Protocol):
    """Objects by key. Picklable; safe to share between threads."""

    @property
    def uri(self) -> str:
        """As it was given to `open_store`."""

    def list(self) -> Iterator[Page]:
        """All objects, hidden ones too, in order of key and in pages of about 1,000, as they come.

        A folder that does not exist is an empty one, as in a bucket; a bucket that does not is NoSuchFolder.
        """

    def head(self, key: str) -> Listed:
        """The object as it is now. Raises: Vanished, StorageError."""

    def get(self, key: str, etag: str | None = None) -> bytes:
        """All bytes, those of `etag` if it is given. Raises: Vanished, Changed, StorageError."""

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] = {},
        over: str | None = None,
        permit: Callable[[], None] = lambda: None,
    ) -> str:
        """Makes or replaces an object, whole or not at all; returns its etag. Raises: Changed, StorageError.

        `over`: only an object with this etag is replaced, and for "" only one made that is not there yet.
        `permit`: called before each attempt.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Makes or replaces an object from a file that may be large. Raises: StorageError, OSError."""

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there are no error. Raises: StorageError."""

    def refusal(self, key: str) -> str | None:
        """Why `key` cannot be stored here; None if it can."""


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
        with translated(join(self.uri, key)):
            return self._listed(key, os.stat(self._path(key)))

    def get(self, key: str, etag: str | None = None) -> bytes:
        """All bytes, those of `etag` if it is given. Raises: Vanished, Changed, StorageError."""
        with translated(join(self.uri, key)), open(self._path(key), "rb") as file:
            before = self._listed(key, os.fstat(file.fileno()))
            data = file.read()
            after = self._listed(key, os.fstat(file.fileno()))
        if after != before or etag not in (None, before.etag):
            raise Changed(join(self.uri, key), "is no longer what was listed")
        return data

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] = {},
        over: str | None = None,
        permit: Callable[[], None] = lambda: None,
    ) -> str:
        """Makes or replaces a file and the folders above it; a file keeps neither content type nor metadata.

        `over` is looked at before, not in the same moment: local outputs have a lock.
        """
        permit()
        if over is not None and self._etag(key) != over:
            raise Changed(join(self.uri, key), "is no longer what was seen")
        return self._replace(key, lambda file: file.write(data))

    def put_file(self, key: str, path: Path) -> None:
        """Copies a file here. Raises: StorageError, OSError."""
        with path.open("rb") as source:
            self._replace(key, lambda file: shutil.copyfileobj(source, file))

    def delete(self, keys: Iterable[str]) -> None:
        """Removes files; those that are not there are no error. Raises: StorageError."""
        for key in keys:
            with suppress(Vanished), translated(join(self.uri, key)):
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
        with translated(join(self.uri, below)):
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
        with translated(join(self.uri, key), absent=()):
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


def open_store(uri: str, *, retry_for: float = RETRY_FOR) -> Store:
    """The store behind a URI; nothing is touched. Raises: RequestError.

    `retry_for`: seconds for which a request to a server is repeated that fails for a passing reason.
    """
    if uri.startswith("s3://"):
        if not split(uri)[0]:
            raise RequestError(f"{uri}: names no bucket; write s3://bucket/prefix")
        return S3Store(uri, retry_for=retry_for)
    if "://" in uri:
        raise RequestError(f"{uri}: only local paths and s3://bucket/prefix can be used; copy it to one")
    return LocalStore(uri)


def list_files(folder: str) -> list[str]:
    """Keys of all files below `folder`, sorted; hidden files and folders are left out. Empty if there is no folder."""
    keys = (listed.key for page in open_store(folder).list() for listed in page)
    return sorted(key for key in keys if not key.endswith("/") and "/." not in f"/{key}")


def join(folder: str, key: str) -> str:
    """The URI of `key` in `folder`."""
    return f"{folder.removesuffix('/')}/{key}"


def with_absolute_paths(settings: Settings, *names: str) -> Settings:
    """`settings`, a dataclass, with local paths in these fields absolute: workers may run in another folder."""
    given = {name: uri for name in names if (uri := getattr(settings, name)) and "://" not in uri}
    changes: dict[str, Any] = {name: os.path.abspath(uri) for name, uri in given.items()}
    return replace(settings, **changes)


def read(uri: str) -> bytes:
    """All bytes of a file. Raises: Vanished, StorageError."""
    store, key = _place(uri)
    return store.get(key)


def write(uri: str, data: bytes) -> None:
    """Makes or replaces a file, and the folders above it. Raises: StorageError."""
    store, key = _place(uri)
    store.put(key, data)


def exists(uri: str) -> bool:
    """Whether there is such a file or folder. Raises: StorageError."""
    store = open_store(uri)
    if isinstance(store, LocalStore):
        return os.path.exists(uri)
    place, key = _place(uri)
    try:
        if key and not key.endswith("/"):
            with suppress(Vanished):
                return bool(place.head(key))
        return any(store.list()) or not key
    except NoSuchFolder:
        return False


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies inside it. Raises: RequestError."""
    stores = open_store(outer), open_store(inner)
    if isinstance(stores[0], S3Store) and isinstance(stores[1], S3Store):
        return stores[0].bucket == stores[1].bucket and stores[1].prefix.startswith(stores[0].prefix)
    if isinstance(stores[0], S3Store) or isinstance(stores[1], S3Store):
        return False
    return Path(os.path.realpath(inner)).is_relative_to(os.path.realpath(outer))


def check_readable(folder: str, flag: str) -> None:
    """Raises RequestError, naming `flag`, unless `folder` can be listed; an empty one can."""
    store = open_store(folder, retry_for=CHECK_FOR)
    try:
        if isinstance(store, LocalStore) and not os.path.isdir(folder):
            raise NoSuchFolder(folder, "there is no such folder")
        next(store.list(), None)
    except StorageError as error:
        raise _request_error(folder, flag, "read", error) from None


def check_writable(folder: str, flag: str) -> None:
    """Raises RequestError, naming `flag`, unless files can be made in `folder`; makes a local one."""
    store = open_store(folder, retry_for=CHECK_FOR)
    try:
        store.put(".writable", b"")
        with suppress(Denied):  # to remove files is a right that no job needs
            store.delete([".writable"])
    except StorageError as error:
        raise _request_error(folder, flag, "written", error) from None


def _request_error(folder: str, flag: str, done: str, error: StorageError) -> RequestError:
    remedy = f"name a folder that {'exists and ' * (done == 'read')}you may {'read' if done == 'read' else 'write to'}"
    if folder.startswith("s3://"):
        remedy = "check the name, the network and AWS_ENDPOINT_URL"
        if isinstance(error, NoSuchFolder):
            remedy = "create it, or correct the name"
        elif isinstance(error, Denied):
            remedy = "check the AWS credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret) and what they allow"
    return RequestError(f"{flag} {folder}: cannot be {done} ({error.strerror}); {remedy}")


def _place(uri: str) -> tuple[Store, str]:
    """The store and the key in it that `uri` names as a file."""
    if isinstance(open_store(uri), S3Store):
        bucket, key = split(uri)
        return S3Store(f"s3://{bucket}"), key
    path = Path(uri)
    return LocalStore(str(path.parent)), path.name


def _is_ours(name: str) -> bool:
    return name.startswith(OURS[0]) and name.endswith(OURS[1])


@contextmanager
def translated(
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
