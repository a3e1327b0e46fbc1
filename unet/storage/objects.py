"""What a listing shows of an object, what is given with one that is written, and the URIs of objects."""

import re
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa


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

LISTED = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string()), ("storage_class", pa.string())])
"""Columns of a page as a table, where there are too many objects to make one of each."""

NOT_UNICODE = "not Unicode"
"""In a table, the storage class of a file whose name is none of Unicode; the key only looks like it."""

_ACCESS_POINT = re.compile(r"arn:[^/]+?:(outpost[:/][^:/]+[:/])?accesspoint[:/][^:/]+")
"""The ARN of an access point, in the place of a bucket: of one region, of several, or of S3 on Outposts."""

Guard = Callable[[], None]
"""Called before a write; returns once it may be begun, and raises if it may not."""


def is_unicode(key: str) -> bool:
    """Return whether a key is valid Unicode, as all that is recorded is."""
    return key.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in key)


def to_table(page: Page) -> pa.Table:
    """Return a page as a table of LISTED."""
    if not all(is_unicode(item.key) for item in page):
        page = [
            item if is_unicode(item.key) else ObjectInfo(repr(item.key), item.size, item.etag, NOT_UNICODE)
            for item in page
        ]
    return pa.table([[item[place] for item in page] for place in range(len(LISTED))], schema=LISTED)


def no_guard() -> None:
    """Let every write begin."""


def join_uri(folder: str, key: str) -> str:
    """Return the URI of `key` in `folder`."""
    return f"{folder.removesuffix('/')}/{key}"


def is_access_point(bucket: str) -> bool:
    """Return whether a bucket is an access point, by its ARN or alias: its name is not that of its bucket."""
    return bool(_ACCESS_POINT.fullmatch(bucket)) or bucket.endswith("-s3alias")


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of s3://bucket/key, unchanged. The bucket may be the ARN of an access point."""
    path = uri.removeprefix("s3://")
    point = _ACCESS_POINT.match(path)
    bucket = point[0] if point else path.partition("/")[0]
    return bucket, path[len(bucket) :].removeprefix("/")
