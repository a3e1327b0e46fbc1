"""A bucket of S3.

Keys are relative to the prefix of the URI and never normalised: `a//b`, `/a` and `../a` are three keys like any other.
Whatever fails is a StorageError. A body that came cut short or fails its checksum is never returned. A request that
fails for a passing reason is repeated until a deadline. Settings come from the standard AWS environment alone.
"""

import base64
import logging
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

from unet.storage.faults import BadCredentials, Changed, Damaged, StorageError, Unreachable, Vanished
from unet.storage.listed import Listed, Page
from unet.storage.s3_faults import BODY_FAULTS, fault_from_code, translate_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

RETRY_FOR = 120.0
"""Seconds for which a request that fails is repeated."""

ATTEMPTS = 3
"""How often a request is made at least, however long each takes."""

LONGEST_PAUSE = 10.0
"""Seconds between two attempts, at most."""

BODIES = 5
"""How often a body that comes cut short or altered is asked for: it may be so where it is stored."""

LONGEST_KEY = 1024
"""Bytes of a key in UTF-8, by the S3 API."""

DELETED_AT_ONCE = 1000
"""Keys in one request to delete, by the S3 API."""


class S3Store:
    """The objects of a bucket whose keys begin with a prefix. Picklable; safe to share between threads."""

    def __init__(self, uri: str, *, retry_for: float = RETRY_FOR) -> None:
        self.uri, self.retry_for = uri, retry_for
        self.bucket, self.prefix = split(uri)
        if self.prefix and not self.prefix.endswith("/"):
            self.prefix += "/"

    def list(self) -> Iterator[Page]:
        """All objects, in order of key, page by page as the bucket answers. Raises: StorageError."""
        token = ""
        while True:
            root = self._persist(self.uri, partial(self._ask_for_page, token))
            space = root.tag[: root.tag.rindex("}") + 1] if "}" in root.tag else ""
            page = self._page(root, space)
            if page:  # an empty one may still name a next one
                yield page
            before, token = token, root.findtext(f"{space}NextContinuationToken") or ""
            if root.findtext(f"{space}IsTruncated") != "true":
                return
            if token in ("", before):
                raise StorageError(self.uri, "the listing breaks off: a page names no next one")

    def head(self, key: str) -> Listed:
        """The object as it is now. Raises: Vanished, StorageError."""

        def ask() -> Listed:
            try:
                answer = _client().head_object(Bucket=self.bucket, Key=self.prefix + key)
            except ClientError as error:
                # An answer without a body has no code: one with a body says whether it is the credentials.
                if error.response.get("Error", {}).get("Code") in ("400", "403"):
                    _client().get_object(Bucket=self.bucket, Key=self.prefix + key, Range="bytes=0-0")["Body"].close()
                raise
            etag = answer["ETag"].strip('"')
            return Listed(key, answer["ContentLength"], etag, answer.get("StorageClass", "STANDARD"))

        return self._persist(self._uri(key), ask)

    def get(self, key: str, etag: str | None = None) -> bytes:
        """All bytes, those of `etag` if it is given. Raises: Vanished, Changed, StorageError."""
        uri = self._uri(key)
        condition: dict[str, Any] = {} if etag is None else {"IfMatch": f'"{etag}"'}

        def ask() -> bytes:
            answer = _client().get_object(Bucket=self.bucket, Key=self.prefix + key, **condition)
            if etag is not None and answer["ETag"].strip('"') != etag:  # a server that does not know If-Match
                raise Changed(uri, "is no longer what was listed")
            try:
                with closing(answer["Body"]) as body:  # as a context itself it would hand out the unchecked stream
                    return body.read()
            except BODY_FAULTS as error:
                raise Damaged(uri, f"came cut short or altered ({type(error).__name__})") from None

        return self._persist(uri, ask)

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

        `over`: only an object with this etag is replaced, and for "" only one made that is not there yet; Changed
        if it is otherwise, which it is too if the first answer to this very request was lost on its way.
        `guard`: called before each attempt.
        """
        self._check(key)
        condition: dict[str, Any] = {}
        if over is not None:
            condition = {"IfMatch": f'"{over}"'} if over else {"IfNoneMatch": "*"}
        # Given by us it travels as a header, which older servers take too; botocore would send a trailer.
        checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()

        def send() -> str:
            guard()
            answer = _client().put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=bytes(data),
                ContentType=content_type,
                Metadata=metadata,
                ChecksumAlgorithm="CRC32",
                ChecksumCRC32=checksum,
                **condition,
            )
            return answer["ETag"].strip('"')

        try:
            return self._persist(self._uri(key), send)
        except Vanished:
            if over:
                raise Changed(self._uri(key), "is no longer there") from None
            raise

    def put_file(self, key: str, path: Path) -> None:
        """Makes or replaces an object from a file, in parts where it is large. Raises: StorageError, OSError."""
        self._check(key)

        def send() -> None:
            with path.open("rb") as file:  # anew for each attempt: boto3 may close it
                _client().upload_fileobj(file, self.bucket, self.prefix + key)

        self._persist(self._uri(key), send)

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there are no error. Raises: StorageError."""
        rest = iter(keys)
        while batch := [{"Key": self.prefix + key} for key in islice(rest, DELETED_AT_ONCE)]:
            self._persist(self.uri, partial(self._ask_to_delete, batch))

    def refusal(self, key: str) -> str | None:
        """Why `key` cannot be stored here; None if it can."""
        try:
            size = len((self.prefix + key).encode())
        except UnicodeEncodeError:
            return "is not valid Unicode"
        if not key:
            return "is empty"
        return f"has {size:,} bytes with its prefix, over {LONGEST_KEY:,}" if size > LONGEST_KEY else None

    def _ask_for_page(self, token: str) -> ElementTree.Element:
        more: dict[str, Any] = {"ContinuationToken": token} if token else {}
        answer: Mapping[str, Any] = _client().list_objects_v2(
            Bucket=self.bucket, Prefix=self.prefix, EncodingType="url", **more
        )
        root: ElementTree.Element = answer["Root"]
        return root

    def _ask_to_delete(self, batch: Sequence[Mapping[str, str]]) -> None:
        answer: Mapping[str, Any] = _client().delete_objects(
            Bucket=self.bucket,
            Delete={"Objects": batch, "Quiet": True},  # type: ignore[typeddict-item]
        )
        for error in answer.get("Errors", ()):
            if error.get("Code") != "NoSuchKey":
                raise fault_from_code(self._uri(error.get("Key", "")[len(self.prefix) :]), 0, error)

    def _persist(self, uri: str, ask: Callable[[], T]) -> T:
        """What `ask` returns, which is called again while it fails for a passing reason.

        Pauses grow and vary, so that workers do not come back all at once ("full jitter", AWS Architecture Blog, 2015).
        Refused credentials are looked for anew, once: their file may hold newer ones by now.
        """
        deadline = time.monotonic() + self.retry_for
        renewed = False
        for attempt in count(1):
            try:
                with translate_errors(uri):
                    return ask()
            except BadCredentials:
                if renewed:
                    raise
                renewed = True
                _forget_client()
            except Unreachable as error:
                pause = random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2**attempt))
                lasting = isinstance(error, Damaged) and attempt == BODIES
                late = attempt >= ATTEMPTS and time.monotonic() + pause > deadline
                if lasting or late:
                    raise type(error)(uri, f"{error.strerror}, {attempt} times") from None
                time.sleep(pause)
        raise AssertionError("count never ends")

    def _check(self, key: str) -> None:
        if (reason := self.refusal(key)) is not None:
            raise StorageError(self._uri(key), reason)

    def _uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def _page(self, root: ElementTree.Element, space: str) -> Page:
        plain = root.findtext(f"{space}EncodingType") != "url"
        skip, page = len(self.prefix), []
        for item in root.iter(f"{space}Contents"):
            key = item.findtext(f"{space}Key") or ""
            page.append(
                Listed(
                    (key if plain else unquote_plus(key))[skip:],
                    int(item.findtext(f"{space}Size") or 0),
                    (item.findtext(f"{space}ETag") or "").strip('"'),
                    item.findtext(f"{space}StorageClass") or "STANDARD",
                )
            )
        return page


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key, as they stand."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


_LOCK = threading.Lock()


def _client() -> "S3Client":
    """One for each process and AWS environment: threads share it, a store in another process makes its own."""
    with _LOCK:
        return _made(os.getpid(), tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


def _forget_client() -> None:
    with _LOCK:
        _made.cache_clear()


@lru_cache(maxsize=4)
def _made(process: int, environment: tuple[tuple[str, str], ...]) -> "S3Client":
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells every process where it found credentials
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
    # By a name that botocore tries before those that begin with "before-parse.s3".
    client.meta.events.register("before-parse.*.ListObjectsV2", _keep_root)
    return client


def _keep_root(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Keeps a page as XML, and from boto3's own readings of it, which take five times as long, mostly over dates.

    What is no page, an error with status 200 or XML cut short, is left to botocore, which asks again.
    """
    if response_dict["status_code"] == 200:
        with suppress(ElementTree.ParseError):
            root = ElementTree.fromstring(response_dict["body"])
            if root.tag.endswith("ListBucketResult"):
                customized_response_dict["Root"] = root
                response_dict["body"] = b"<ListBucketResult/>"
