"""Files in a local folder or an S3 bucket, through one interface: by key in a `Store`, or by URI.

A URI is a local path or s3://bucket/prefix. Keys are relative to a folder, with forward slashes. Writes are atomic: a
reader sees the whole object or none. No key names a path outside its folder.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

import pyarrow as pa

from unet.settings import RequestError
from unet.storage.faults import Denied, MissingPackage, NoSuchFolder, StorageError, Unreachable, Vanished
from unet.storage.local import LocalStore
from unet.storage.objects import Guard, ObjectInfo, Page, no_guard, split_uri
from unet.storage.s3 import RETRY_SECONDS, S3Store

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


Settings = TypeVar("Settings", bound="DataclassInstance")

CHECK_SECONDS = 30.0
"""Seconds for which a request that fails is repeated while the settings of a job are checked."""


class Store(Protocol):
    """Objects by key. Picklable; safe to share between threads. All methods raise StorageError."""

    @property
    def uri(self) -> str:
        """The URI that was given to `open_store`."""

    def list(self, after: str = "", until: str | None = None) -> Iterator[Page]:
        """Yield all objects, hidden ones too, in order of key, in pages of about 1,000; or those with keys that come
        after one, up to another. No page is empty.

        A local folder that does not exist is empty, like a prefix of a bucket. Raise NoSuchFolder if there is no such
        bucket.
        """

    def list_tables(self, after: str = "", until: str | None = None) -> Iterator[pa.Table]:
        """Yield what `list` does, as tables of LISTED."""

    def head(self, key: str) -> ObjectInfo:
        """Return what a listing would show of the object. Raise Vanished if there is none."""

    def get(self, key: str, etag: str | None = None) -> bytes:
        """Return all bytes. Raise Vanished if there is no object, Changed if `etag` is given and is not its etag."""

    def put(
        self,
        key: str,
        data: bytes,
        *,
        metadata: Mapping[str, str] = {},
        expected_etag: str | None = None,
        guard: Guard = no_guard,
    ) -> str:
        """Make or replace an object atomically; return its etag. The suffix of the key says its content type.

        `expected_etag`: raise Changed unless the object has this etag; "": unless there is no object.
        `guard`: called before each attempt; what it raises ends the write.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Make or replace an object from a file that may be large. Raise OSError if the file cannot be read."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; ignore those that do not exist."""

    def key_error(self, key: str) -> str | None:
        """Return why `key` cannot be stored here; None if it can."""


def open_store(uri: str, *, profile: str | None = None, retry_seconds: float = RETRY_SECONDS) -> Store:
    """Return the store of a URI, without a request. Raise RequestError if the URI is of another kind.

    `profile`: of the AWS configuration, for S3; None: as the environment says. `retry_seconds`: for how long a request
    to a server is repeated that fails for a transient reason.
    """
    if uri.startswith("s3://"):
        if not split_uri(uri)[0]:
            raise RequestError(f"{uri}: names no bucket; write s3://bucket/prefix")
        return S3Store(uri, profile=profile, retry_seconds=retry_seconds)
    if "://" in uri:
        raise RequestError(f"{uri}: only local paths and s3://bucket/prefix can be used; copy it to one")
    return LocalStore(uri)


def list_files(folder: str) -> list[str]:
    """Return the keys of all files below `folder`, sorted, without hidden ones; [] if there is no folder."""
    return [item.key for item in list_objects(folder)]


def list_objects(folder: str) -> list[ObjectInfo]:
    """Return all files below `folder`, sorted by key, without hidden ones; [] if there is no folder."""
    items = (item for page in open_store(folder).list() for item in page)
    return sorted(
        (item for item in items if not item.key.endswith("/") and "/." not in f"/{item.key}"), key=lambda item: item.key
    )


def with_absolute_paths(settings: Settings, *names: str) -> Settings:
    """Return `settings` with absolute local paths in the fields `names`: workers may run in another folder."""
    given = {name: uri for name in names if (uri := getattr(settings, name)) and "://" not in uri}
    changes: dict[str, Any] = {name: os.path.abspath(uri) for name, uri in given.items()}
    return replace(settings, **changes)


def read(uri: str, profile: str | None = None) -> bytes:
    """Return all bytes of a file. Raise Vanished if there is none."""
    store, key = _locate(uri, profile)
    return store.get(key)


def open_file(uri: str) -> BinaryIO:
    """Return a file to read from at any place: a large local one itself, else all its bytes. Raise Vanished if there is
    none."""
    store, key = _locate(uri)
    return store.open(key) if isinstance(store, LocalStore) else io.BytesIO(store.get(key))


def write(uri: str, data: bytes) -> None:
    """Make or replace a file atomically, and the folders above it."""
    store, key = _locate(uri)
    store.put(key, data)


def exists(uri: str) -> bool:
    """Return whether there is such a file or folder."""
    store = open_store(uri)
    if isinstance(store, LocalStore):
        return os.path.exists(uri)
    bucket, key = _locate(uri)
    try:
        if key and not key.endswith("/"):
            with suppress(Vanished):
                return bool(bucket.head(key))
        return any(store.list()) or not key
    except NoSuchFolder:
        return False


def is_object(uri: str, profile: str | None = None) -> bool:
    """Return whether there is a file of this very name."""
    store, key = _locate(uri, profile)
    with suppress(Vanished):
        return bool(key) and store.key_error(key) is None and bool(store.head(key))
    return False


def contains(outer: Store, inner: Store) -> bool:
    """Return whether `inner` is `outer` or lies inside it."""
    if isinstance(outer, S3Store) and isinstance(inner, S3Store):
        return outer.contains(inner)
    if isinstance(outer, S3Store) or isinstance(inner, S3Store):
        return False
    return Path(os.path.realpath(inner.uri)).is_relative_to(os.path.realpath(outer.uri))


def check_readable(folder: str, flag: str, profile: str | None = None) -> None:
    """Raise as `check_error`, naming `flag`, unless `folder` can be listed; it may be empty."""
    store = open_store(folder, profile=profile, retry_seconds=CHECK_SECONDS)
    try:
        if isinstance(store, LocalStore) and not os.path.isdir(folder):
            raise NoSuchFolder(folder, "there is no such folder")
        next(store.list(), None)
    except StorageError as error:
        raise check_error(folder, flag, "read", error, profile) from None


def check_writable(folder: str, flag: str, profile: str | None = None) -> None:
    """Raise as `check_error`, naming `flag`, unless a file can be made in `folder`; make the folder if it is local."""
    store = open_store(folder, profile=profile, retry_seconds=CHECK_SECONDS)
    try:
        store.put(".writable", b"")
        with suppress(Denied):  # no job needs the permission to delete
            store.delete([".writable"])
    except StorageError as error:
        raise check_error(folder, flag, "written", error, profile) from None


def check_error(
    folder: str, flag: str, verb: str, error: StorageError, profile: str | None = None
) -> RequestError | Unreachable:
    """Return what a check raises, naming `flag`, where `folder` cannot be read or written (`verb`): Unreachable where
    the same request may succeed later, else RequestError."""
    remedy = "check the name, the network and AWS_ENDPOINT_URL"
    if not folder.startswith("s3://"):
        remedy = "name a folder that " + ("exists and you may read" if verb == "read" else "you may write to")
    elif isinstance(error, NoSuchFolder):
        remedy = "create it, or correct the name"
    elif isinstance(error, MissingPackage):
        remedy = "pip install 'botocore[crt]' on every machine"
    elif isinstance(error, Denied) and profile:
        remedy = f"check {flag}-profile {profile} in ~/.aws/config and ~/.aws/credentials, and what it allows"
    elif isinstance(error, Denied):
        remedy = "check the AWS credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret) and what they allow"
    reason = f"cannot be {verb} ({error.strerror}); {remedy}"
    if isinstance(error, Unreachable):
        return Unreachable(f"{flag} {folder}", reason)
    return RequestError(f"{flag} {folder}: {reason}")


def _locate(uri: str, profile: str | None = None) -> tuple[Store, str]:
    """Return the store of the bucket or folder that the file `uri` lies in, and its key there."""
    if isinstance(open_store(uri), S3Store):
        bucket, key = split_uri(uri)
        return S3Store(f"s3://{bucket}", profile=profile), key
    path = Path(uri)
    return LocalStore(str(path.parent)), path.name
