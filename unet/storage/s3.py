"""A bucket of S3 as a store.

Keys are relative to the prefix of the URI and never normalised: `a//b`, `/a` and `../a` are three different keys.
Every failure is a StorageError. A body that is cut short or fails its checksum is never returned. A request that fails
for a transient reason is repeated until a deadline. Settings are those of s3_client.py.
"""

import base64
import mimetypes
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial, reduce
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_plus

import pyarrow as pa
from botocore.exceptions import ClientError
from s3transfer.utils import ReadFileChunk

from unet.storage.faults import BadCredentials, Changed, Damaged, StorageError, Unreachable, Unsupported, Vanished
from unet.storage.objects import LISTED, Guard, ObjectInfo, Page, no_guard, split_uri
from unet.storage.s3_client import client, discard_clients, object_client
from unet.storage.s3_faults import BODY_ERRORS, fault_from_code, translate_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from unet.storage.s3_direct import DirectClient

T = TypeVar("T")

RETRY_SECONDS = 120.0
"""Seconds for which a request that fails is repeated."""

MIN_ATTEMPTS = 3
"""Attempts that a request is given even if each takes so long that the deadline has passed."""

MAX_BACKOFF = 10.0
"""Seconds between two attempts, at most."""

BODY_ATTEMPTS = 5
"""Attempts to read a body that comes cut short or altered, since it may be stored like that."""

MAX_KEY_BYTES = 1024
"""Length of a key in UTF-8, by the S3 API."""

DELETE_BATCH = 1000
"""Keys in one request to delete, by the S3 API."""

PART_BYTES = 8 << 20
"""Size of the parts of a large upload. By the S3 API they have at least 5 MiB, and are at most 10,000: 80 GB."""

MAX_IN_MEMORY = 1 << 20
"""Bytes of a file that are read at a time."""


Columns = tuple[list[Any], ...]
"""Keys, sizes, etags and storage classes of a page."""


class S3Store:
    """The objects of a bucket whose keys begin with a prefix, as `Store`."""

    def __init__(self, uri: str, *, profile: str | None = None, retry_seconds: float = RETRY_SECONDS) -> None:
        self.uri, self.profile, self.retry_seconds = uri, profile, retry_seconds
        self.bucket, self.prefix = split_uri(uri)
        if self.prefix and not self.prefix.endswith("/"):
            self.prefix += "/"
        self._if_match: tuple[str, ...] = ('"{}"', "{}")
        """Forms of If-Match that the server may know in a write. Ceph's radosgw 16 knows the bare etag alone, which
        elsewhere is an error of syntax or no condition at all."""

    def list(self, after: str = "", until: str | None = None) -> Iterator[Page]:
        for columns in self._pages(after, until):
            yield list(map(ObjectInfo._make, zip(*columns, strict=True)))

    def list_tables(self, after: str = "", until: str | None = None) -> Iterator[pa.Table]:
        for columns in self._pages(after, until):
            if (after or until is not None) and columns[0] != sorted(columns[0]):  # nothing says that none is left out
                raise StorageError(self.uri, "is listed out of order; run it again with --list-workers 1")
            yield pa.table(list(columns), schema=LISTED)

    def _pages(self, after: str, until: str | None) -> Iterator[Columns]:
        begin = {"StartAfter": self.prefix + after} if after else {}
        token: str | None = ""
        while token is not None:
            columns, token = self._retry(self.uri, partial(self._fetch_page, begin, token))
            keys = columns[0]
            if until is not None and max(keys, default="") > until:
                places = [place for place, key in enumerate(keys) if key <= until]
                columns = tuple([column[place] for place in places] for column in columns)
                token = None if keys == sorted(keys) else token
            if columns[0]:  # an empty page may be followed by others
                yield columns

    def head(self, key: str) -> ObjectInfo:
        def request() -> ObjectInfo:
            try:
                response = self._client.head_object(**self._object(key))
            except ClientError as error:
                # The response to HEAD has no body, and so no error code; GET tells whether the credentials are bad.
                if error.response.get("Error", {}).get("Code") in ("400", "403"):
                    self._client.get_object(**self._object(key), Range="bytes=0-0")["Body"].close()
                raise
            etag = response["ETag"].strip('"')
            return ObjectInfo(key, response["ContentLength"], etag, _class_of(response) or "STANDARD")

        return self._retry(self._uri(key), request)

    def metadata(self, key: str) -> dict[str, str]:
        """Return the metadata that an object was put with. Raise Vanished if there is none."""
        return self._retry(self._uri(key), lambda: self._client.head_object(**self._object(key))["Metadata"])

    def get(self, key: str, etag: str | None = None) -> bytes:
        uri = self._uri(key)
        wanted = self._object(key) | ({} if etag is None else {"IfMatch": f'"{etag}"'})

        def request() -> bytes:
            response: Mapping[str, Any] = object_client(self.bucket, self.profile).get_object(**wanted)
            if etag is not None and response["ETag"].strip('"') != etag:  # the server does not implement If-Match
                raise Changed(uri, "is no longer what was listed")
            try:
                # `with response["Body"]` would give the raw stream, which does not verify the checksum.
                with closing(response["Body"]) as body:
                    return bytes(body.read())
            except BODY_ERRORS as error:
                raise Damaged(uri, f"came cut short or altered ({type(error).__name__})") from None

        return self._retry(uri, request)

    def put(
        self,
        key: str,
        data: bytes,
        *,
        metadata: Mapping[str, str] = {},
        expected_etag: str | None = None,
        guard: Guard = no_guard,
    ) -> str:
        """As `Store.put`. Changed is also raised if this write succeeded, its response was lost and it was repeated."""
        self._check_key(key)
        headers = self._object(key) | {"ContentType": _content_type(key), "Metadata": metadata}

        def request(**condition: Any) -> str:
            guard()
            to = object_client(self.bucket, self.profile)
            sent = headers | _checksum(to, [data]) | condition
            return str(to.put_object(**sent, Body=bytes(data))["ETag"]).strip('"')

        if expected_etag:
            return self._replace(key, expected_etag, request)
        condition = {} if expected_etag is None else {"IfNoneMatch": "*"}
        return self._retry(self._uri(key), partial(request, **condition))

    def _replace(self, key: str, expected_etag: str, request: Callable[..., str]) -> str:
        """Make a request on condition of an etag. Raise Unsupported if the server refuses the etag that it names."""
        uri, forms = self._uri(key), self._if_match
        try:
            for form in forms:
                try:
                    etag = self._retry(uri, partial(request, IfMatch=form.format(expected_etag)))
                    self._if_match = (form,)
                    return etag
                except Changed:
                    if len(forms) == 1 or self.head(key).etag != expected_etag:
                        raise
        except Vanished:
            raise Changed(uri, "is no longer there") from None
        raise Unsupported(uri, "the storage server cannot replace an object on condition of its etag")

    def put_file(self, key: str, path: Path) -> None:
        """As `Store.put_file`; a larger file in parts, each sent from the file, and repeated by itself."""
        uri, size = self._uri(key), path.stat().st_size
        if size <= MAX_IN_MEMORY:
            self.put(key, path.read_bytes())
            return
        self._check_key(key)
        upload = self._object(key) | {"UploadId": self._retry(uri, partial(self._begin_upload, key))}
        try:
            starts = enumerate(range(0, size, PART_BYTES), 1)
            parts = [
                self._retry(uri, partial(self._upload_part, upload, number, path, start)) for number, start in starts
            ]
            end = upload | {"MultipartUpload": {"Parts": parts}}
            try:
                self._retry(uri, lambda: self._client.complete_multipart_upload(**end))
            except Vanished:  # the upload is gone: an attempt whose response was lost may have completed it
                if self.head(key).size != size:
                    raise
        except OSError:
            with suppress(StorageError), translate_errors(uri):
                self._client.abort_multipart_upload(**upload)
            raise

    def _begin_upload(self, key: str) -> str:
        checksum = {"ChecksumAlgorithm": "CRC32"} if _checksum(self._client, []) else {}
        begin = self._object(key) | {"ContentType": _content_type(key)} | checksum
        return self._client.create_multipart_upload(**begin)["UploadId"]

    def _upload_part(self, upload: Mapping[str, Any], number: int, path: Path, start: int) -> dict[str, Any]:
        part: Any = ReadFileChunk.from_filename(str(path), start, PART_BYTES)
        with closing(part):
            checksum = _checksum(self._client, iter(partial(part.read, MAX_IN_MEMORY), b""))
            part.seek(0)
            etag = self._client.upload_part(**upload, **checksum, PartNumber=number, Body=part)["ETag"]
        return {"PartNumber": number, "ETag": etag} | {
            name: checksum[name] for name in checksum if name != "ChecksumAlgorithm"
        }

    def contains(self, other: "S3Store") -> bool:
        """Return whether `other` is this folder or lies in it. All endpoints of AWS lead to the same buckets."""
        if self.bucket != other.bucket or not other.prefix.startswith(self.prefix):
            return False
        with suppress(StorageError), translate_errors(self.uri):  # of a profile, as whoever reads or writes will see
            servers = {re.sub(r"\S+\.amazonaws\.com", "", store._client.meta.endpoint_url) for store in (self, other)}
            return len(servers) == 1
        return False

    def delete(self, keys: Iterable[str]) -> None:
        remaining = iter(keys)
        while batch := [{"Key": self.prefix + key} for key in islice(remaining, DELETE_BATCH)]:
            self._retry(self.uri, partial(self._delete_batch, batch))

    def key_error(self, key: str) -> str | None:
        try:
            size = len((self.prefix + key).encode())
        except UnicodeEncodeError:
            return "is not valid Unicode"
        if not key:
            return "is empty"
        return f"has {size:,} bytes with its prefix, over {MAX_KEY_BYTES:,}" if size > MAX_KEY_BYTES else None

    def _fetch_page(self, begin: Mapping[str, str], token: str) -> tuple[Columns, str | None]:
        """Return a page of the listing and the continuation token of the next one; None after the last."""
        request: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self.prefix, "EncodingType": "url"}
        request["OptionalObjectAttributes"] = ["RestoreStatus"]
        request |= {"ContinuationToken": token} if token else begin
        response: Mapping[str, Any] = self._client.list_objects_v2(**request)
        items: Iterable[Mapping[str, Any]] = response.get("Contents", ())
        keys, sizes, etags, kinds = response.get("Entries") or (
            *([item.get(name, "") for item in items] for name in ("Key", "Size", "ETag")),
            [_class_of(item) for item in items],
        )
        if response.get("EncodingType") == "url":
            keys = [unquote_plus(key) if "%" in key or "+" in key else key for key in keys]
        skip = len(self.prefix)
        names, bare = [key[skip:] for key in keys], [etag.strip('"') for etag in etags]
        page = names, list(map(int, sizes)), bare, [kind or "STANDARD" for kind in kinds]
        if not response.get("IsTruncated"):
            return page, None
        following = response.get("NextContinuationToken")
        if not following or following == token:
            raise StorageError(self.uri, "the listing breaks off: a page names no next one")
        return page, following

    def _delete_batch(self, batch: Sequence[Mapping[str, str]]) -> None:
        request: dict[str, Any] = {"Bucket": self.bucket, "Delete": {"Objects": batch, "Quiet": True}}
        response: Mapping[str, Any] = self._client.delete_objects(**request)
        for error in response.get("Errors", ()):
            if error.get("Code") != "NoSuchKey":
                raise fault_from_code(self._uri(error.get("Key", "")[len(self.prefix) :]), 0, error)

    def _retry(self, uri: str, request: Callable[[], T]) -> T:
        """Return what `request` returns; call it again while it fails for a transient reason.

        The pauses grow exponentially with full jitter, so that workers do not all repeat at the same time ("Exponential
        Backoff And Jitter", AWS Architecture Blog, 2015). Where credentials are refused they are loaded again, once:
        their file may have been renewed.
        """
        deadline = time.monotonic() + self.retry_seconds
        reloaded = False
        for attempt in count(1):
            try:
                with translate_errors(uri):
                    return request()
            except BadCredentials:
                if reloaded:
                    raise
                reloaded = True
                discard_clients()
            except Unreachable as error:
                pause = random.uniform(0, min(MAX_BACKOFF, 0.1 * 2**attempt))
                stored_damaged = isinstance(error, Damaged) and attempt == BODY_ATTEMPTS
                too_late = attempt >= MIN_ATTEMPTS and time.monotonic() + pause > deadline
                if stored_damaged or too_late:
                    raise type(error)(uri, f"{error.strerror}, {attempt} times") from None
                time.sleep(pause)
        raise AssertionError("count never ends")

    @property
    def _client(self) -> "S3Client":
        return client(self.profile)

    def _check_key(self, key: str) -> None:
        if (reason := self.key_error(key)) is not None:
            raise StorageError(self._uri(key), reason)

    def _object(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def _uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"


def _class_of(item: Mapping[str, Any]) -> str:
    """Return the storage class in a listing or a response; of a restored object as if it had never been archived."""
    told = item.get("RestoreStatus", {}).get("RestoreExpiryDate")
    restored = told or 'ongoing-request="false"' in item.get("Restore", "")
    return "STANDARD" if restored else item.get("StorageClass", "")


def _checksum(to: "DirectClient | S3Client", pieces: Iterable[bytes]) -> dict[str, Any]:
    """Return the CRC-32 for a request, unless AWS_REQUEST_CHECKSUM_CALCULATION or the profile asks for none. Given to
    botocore it is sent as a header, which older servers know; of its own botocore would send a trailer."""
    config: Any = to.meta.config
    if config.request_checksum_calculation == "when_required":
        return {}
    crc = reduce(lambda crc, piece: zlib.crc32(piece, crc), pieces, 0)
    return {"ChecksumAlgorithm": "CRC32", "ChecksumCRC32": base64.b64encode(crc.to_bytes(4, "big")).decode()}


def _content_type(key: str) -> str:
    return mimetypes.types_map.get(os.path.splitext(key)[1].lower(), "application/octet-stream")
