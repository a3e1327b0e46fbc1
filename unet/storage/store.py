"""Where files live: one small interface over a local folder and an S3 bucket, and the same by URI.

A URI is a local path or s3://bucket/prefix. Keys are relative to a folder and use forward slashes. A write is whole or
absent, and a read is whole or raises: no reader ever sees half a file. No key names a path outside its folder.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from unet.settings import RequestError
from unet.storage.faults import (
    Denied,
    NoSuchFolder,
    StorageError,
    Vanished,
)
from unet.storage.listed import Listed, Page
from unet.storage.local import LocalStore
from unet.storage.s3 import RETRY_FOR, S3Store, split

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


Settings = TypeVar("Settings", bound="DataclassInstance")

CHECK_FOR = 5.0
"""Seconds for which a request that fails is repeated before a job begins."""


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
        data: bytes | memoryview,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] = {},
        over: str | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> str:
        """Makes or replaces an object, whole or not at all; returns its etag. Raises: Changed, StorageError.

        `over`: only an object with this etag is replaced, and for "" only one made that is not there yet.
        `guard`: called before each attempt.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Makes or replaces an object from a file that may be large. Raises: StorageError, OSError."""

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there are no error. Raises: StorageError."""

    def refusal(self, key: str) -> str | None:
        """Why `key` cannot be stored here; None if it can."""


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


def with_absolute_paths(settings: Settings, *names: str) -> Settings:
    """`settings`, a dataclass, with local paths in these fields absolute: workers may run in another folder."""
    given = {name: uri for name in names if (uri := getattr(settings, name)) and "://" not in uri}
    changes: dict[str, Any] = {name: os.path.abspath(uri) for name, uri in given.items()}
    return replace(settings, **changes)


def read(uri: str) -> bytes:
    """All bytes of a file. Raises: Vanished, StorageError."""
    store, key = _place(uri)
    return store.get(key)


def write(uri: str, data: bytes | memoryview) -> None:
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
