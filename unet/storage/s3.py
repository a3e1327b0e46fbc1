"""A bucket of S3 as a store.

Keys are relative to the prefix of the URI and never normalised: `a//b`, `/a` and `../a` are three different keys.
Every failure is a StorageError. A body that is cut short or fails its checksum is never returned. A request that fails
for a transient reason is repeated until a deadline. Settings come from the standard AWS environment alone.
"""

import base64
import logging
import mimetypes
import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_plus
from xml.etree import ElementTree

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from unet.storage.faults import BadCredentials, Changed, Damaged, StorageError, Unreachable, Unsupported, Vanished
from unet.storage.objects import Guard, ObjectInfo, Page, no_guard, split_uri
from unet.storage.s3_faults import BODY_ERRORS, fault_from_code, translate_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

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


class S3Store:
    """The objects of a bucket whose keys begin with a prefix, as `Store`."""

    def __init__(self, uri: str, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self.uri, self.retry_seconds = uri, retry_seconds
        self.bucket, self.prefix = split_uri(uri)
        if self.prefix and not self.prefix.endswith("/"):
            self.prefix += "/"
        self._if_match: tuple[str, ...] = ('"{}"', "{}")
        """Forms of If-Match that the server may know in a write. Ceph's radosgw 16 knows the bare etag alone, which
        elsewhere is an error of syntax or no condition at all."""

    def list(self) -> Iterator[Page]:
        token: str | None = ""
        while token is not None:
            page, token = self._retry(self.uri, partial(self._fetch_page, token))
            if page:  # an empty page may be followed by others
                yield page

    def head(self, key: str) -> ObjectInfo:
        def request() -> ObjectInfo:
            try:
                response = _client().head_object(Bucket=self.bucket, Key=self.prefix + key)
            except ClientError as error:
                # The response to HEAD has no body, and so no error code; GET tells whether the credentials are bad.
                if error.response.get("Error", {}).get("Code") in ("400", "403"):
                    _client().get_object(Bucket=self.bucket, Key=self.prefix + key, Range="bytes=0-0")["Body"].close()
                raise
            etag = response["ETag"].strip('"')
            return ObjectInfo(key, response["ContentLength"], etag, response.get("StorageClass", "STANDARD"))

        return self._retry(self._uri(key), request)

    def get(self, key: str, etag: str | None = None) -> bytes:
        uri = self._uri(key)
        condition: dict[str, Any] = {} if etag is None else {"IfMatch": f'"{etag}"'}

        def request() -> bytes:
            response = _client().get_object(Bucket=self.bucket, Key=self.prefix + key, **condition)
            if etag is not None and response["ETag"].strip('"') != etag:  # the server does not implement If-Match
                raise Changed(uri, "is no longer what was listed")
            try:
                # `with response["Body"]` would give the raw stream, which does not verify the checksum.
                with closing(response["Body"]) as body:
                    return body.read()
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
        # Computed here it is sent as a header, which older servers know; botocore would send a trailer.
        checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()

        def request(**condition: Any) -> str:
            guard()
            response = _client().put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=bytes(data),
                ContentType=mimetypes.types_map.get(os.path.splitext(key)[1].lower(), "application/octet-stream"),
                Metadata=metadata,
                ChecksumAlgorithm="CRC32",
                ChecksumCRC32=checksum,
                **condition,
            )
            return response["ETag"].strip('"')

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
        """As `Store.put_file`, in parts where the file is large."""
        self._check_key(key)

        def request() -> None:
            with path.open("rb") as file:  # opened for each attempt, since boto3 may close it
                _client().upload_fileobj(file, self.bucket, self.prefix + key)

        self._retry(self._uri(key), request)

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

    def _fetch_page(self, token: str) -> tuple[Page, str | None]:
        """Return a page of the listing and the continuation token of the next one; None after the last."""
        continuation: dict[str, Any] = {"ContinuationToken": token} if token else {}
        response: Mapping[str, Any] = _client().list_objects_v2(
            Bucket=self.bucket, Prefix=self.prefix, EncodingType="url", **continuation
        )
        root: ElementTree.Element = response["Root"]
        namespace = root.tag.removesuffix(LISTING_TAG)
        page = self._parse_page(root, namespace)
        if root.findtext(f"{namespace}IsTruncated") != "true":
            return page, None
        following = root.findtext(f"{namespace}NextContinuationToken")
        if not following or following == token:
            raise StorageError(self.uri, "the listing breaks off: a page names no next one")
        return page, following

    def _parse_page(self, root: ElementTree.Element, namespace: str) -> Page:
        encoded = root.findtext(f"{namespace}EncodingType") == "url"
        skip, page = len(self.prefix), []
        for item in root.iter(f"{namespace}Contents"):
            key = item.findtext(f"{namespace}Key") or ""
            page.append(
                ObjectInfo(
                    (unquote_plus(key) if encoded else key)[skip:],
                    int(item.findtext(f"{namespace}Size") or 0),
                    (item.findtext(f"{namespace}ETag") or "").strip('"'),
                    item.findtext(f"{namespace}StorageClass") or "STANDARD",
                )
            )
        return page

    def _delete_batch(self, batch: Sequence[Mapping[str, str]]) -> None:
        response: Mapping[str, Any] = _client().delete_objects(
            Bucket=self.bucket,
            Delete={"Objects": batch, "Quiet": True},  # type: ignore[typeddict-item]
        )
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
                _discard_clients()
            except Unreachable as error:
                pause = random.uniform(0, min(MAX_BACKOFF, 0.1 * 2**attempt))
                stored_damaged = isinstance(error, Damaged) and attempt == BODY_ATTEMPTS
                too_late = attempt >= MIN_ATTEMPTS and time.monotonic() + pause > deadline
                if stored_damaged or too_late:
                    raise type(error)(uri, f"{error.strerror}, {attempt} times") from None
                time.sleep(pause)
        raise AssertionError("count never ends")

    def _check_key(self, key: str) -> None:
        if (reason := self.key_error(key)) is not None:
            raise StorageError(self._uri(key), reason)

    def _uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"


_LOCK = threading.Lock()


def _client() -> "S3Client":
    """Return the client of this process and AWS environment, which its threads share."""
    with _LOCK:
        environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        return _cached_client(os.getpid(), environment)


def _discard_clients() -> None:
    with _LOCK:
        _cached_client.cache_clear()


@lru_cache(maxsize=4)
def _cached_client(process: int, environment: tuple[tuple[str, str], ...]) -> "S3Client":
    logging.getLogger("botocore").setLevel(logging.WARNING)  # on INFO it says in every process where credentials are
    session = boto3.Session()
    client: S3Client = session.client(
        "s3",
        region_name=dict(environment).get("AWS_REGION") or session.region_name or "us-east-1",
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 1},  # S3Store repeats
            max_pool_connections=64,
            connect_timeout=10,
            read_timeout=20,
        ),
    )
    # botocore calls handlers of this pattern before its own, which are registered for "before-parse.s3".
    client.meta.events.register("before-parse.*.ListObjectsV2", _keep_listing_xml)
    return client


LISTING_TAG = "ListBucketResult"


def _keep_listing_xml(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Keep a page of a listing as the parsed XML, and give botocore an empty one.

    botocore takes five times as long to parse a page, mostly for its dates. A body that is no page (an error with
    status 200, or XML that is cut short) is left to botocore.
    """
    if response_dict["status_code"] == 200:
        with suppress(ElementTree.ParseError):
            root = ElementTree.fromstring(response_dict["body"])
            if root.tag.endswith(LISTING_TAG):
                customized_response_dict["Root"] = root
                response_dict["body"] = f"<{LISTING_TAG}/>".encode()
