"""What a listing shows of an object, what is given with one that is written, and the URIs of objects."""

from collections.abc import Callable
from typing import NamedTuple


class ObjectInfo(NamedTuple):
    """An object as a listing shows it: a tuple, since a data class takes three times as long to make."""

    key: str
    """Relative to the URI of the store."""
    size: int
    """Bytes."""
    etag: str
    """Changes whenever the bytes do; without quotes."""
    storage_class: str = "STANDARD"


Page = list[ObjectInfo]

Guard = Callable[[], None]
"""Called before a write; returns once it may be begun, and raises if it may not."""


def no_guard() -> None:
    """Let every write begin."""


def join_uri(folder: str, key: str) -> str:
    """Return the URI of `key` in `folder`."""
    return f"{folder.removesuffix('/')}/{key}"


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of s3://bucket/key, unchanged."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
