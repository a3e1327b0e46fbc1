"""A bucket of S3, and the words that it shares with a local folder: what a listing shows and how storage fails.

Keys are relative to the prefix of the URI and never normalised: `a//b`, `/a` and `../a` are three keys like any other.
Every foreign exception becomes a StorageError here, and no message of ours holds a secret. A body that came cut short
or fails its checksum is never returned. Settings come from the standard AWS environment and nowhere else.
"""

import base64
import os
import random
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

import boto3
from botocore import exceptions
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TRIES = 3
"""How often a body is asked for before it is given up; requests that fail as such are retried by botocore."""

LONGEST_KEY = 1024
"""Bytes of a key in UTF-8, by the S3 API."""

DELETED_AT_ONCE = 1000
"""Keys in one request to delete, by the S3 API."""

BAD_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NotSignedUp",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
"""Error codes of credentials that are wrong for everything."""

WITHOUT_CREDENTIALS = (
    exceptions.CredentialRetrievalError,
    exceptions.LoginError,
    exceptions.NoAuthTokenError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.ProfileNotFound,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
    exceptions.UnknownTokenProviderError,
)
BODY_FAULTS = (
    exceptions.FlexibleChecksumError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    HTTPError,
)
"""What botocore raises while a body is read, and does not retry itself."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it."""

    key: str
    """Relative to the URI of the store."""
    size: int
    """Bytes."""
    etag: str
    """Changes whenever the bytes do; without quotes."""
    storage_class: str = "STANDARD"


Page = list[Listed]


class StorageError(OSError):
    """Something stored could not be listed, read or written; the message is one line that names its URI."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)  # the arguments that unpickling calls it with again
        self.errno, self.strerror = None, reason

    def __str__(self) -> str:
        uri = str(self.args[0])
        return f"{uri if uri.isprintable() else repr(uri)}: {self.strerror}"


class Vanished(StorageError):  # noqa: N818
    """There is no such object."""


class Changed(StorageError):  # noqa: N818
    """The object is no longer the one with the etag that was asked for."""


class Denied(StorageError):  # noqa: N818
    """This is not allowed."""


class BadCredentials(Denied):
    """Credentials are missing, wrong or expired: no request will do better."""


class NoSuchFolder(StorageError):  # noqa: N818
    """There is no such bucket, or what should be a folder is none."""


class S3Store:
    """The objects of a bucket whose keys begin with a prefix. Picklable; safe to share between threads."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.bucket, self.prefix = split(uri)
        if self.prefix and not self.prefix.endswith("/"):
            self.prefix += "/"

    def list(self) -> Iterator[Page]:
        """All objects, in order of key, page by page as the bucket answers. Raises: StorageError."""
        token = ""
        while True:
            more: dict[str, Any] = {"ContinuationToken": token} if token else {}
            with translated(self.uri):
                answer: Mapping[str, Any] = _client().list_objects_v2(
                    Bucket=self.bucket, Prefix=self.prefix, EncodingType="url", **more
                )
                root = answer["Root"]
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
        with translated(self._uri(key)):
            answer = _client().head_object(Bucket=self.bucket, Key=self.prefix + key)
            etag = answer["ETag"].strip('"')
            return Listed(key, answer["ContentLength"], etag, answer.get("StorageClass", "STANDARD"))

    def get(self, key: str, etag: str | None = None) -> bytes:
        """All bytes, those of `etag` if it is given. Raises: Vanished, Changed, StorageError."""
        uri, fault = self._uri(key), ""
        condition: dict[str, Any] = {} if etag is None else {"IfMatch": f'"{etag}"'}
        for attempt in range(TRIES):
            with translated(uri):
                answer = _client().get_object(Bucket=self.bucket, Key=self.prefix + key, **condition)
                if etag is not None and answer["ETag"].strip('"') != etag:  # a server that does not know If-Match
                    raise Changed(uri, "is no longer what was listed")
            try:
                with closing(answer["Body"]) as body:  # as a context itself it would hand out the unchecked stream
                    return body.read()
            except BODY_FAULTS as error:
                fault = type(error).__name__
                time.sleep(random.uniform(0, 0.2 * 2**attempt))
        raise StorageError(uri, f"came cut short or altered {TRIES} times over ({fault})")

    def put(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] = {},
    ) -> str:
        """Makes or replaces an object, whole or not at all; returns its etag. Raises: StorageError."""
        self._check(key)
        with translated(self._uri(key)):
            answer = _client().put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=data,
                ContentType=content_type,
                Metadata=metadata,
                # Given by us it travels as a header, which older servers take too; botocore would send a trailer.
                ChecksumAlgorithm="CRC32",
                ChecksumCRC32=base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode(),
            )
        return answer["ETag"].strip('"')

    def put_file(self, key: str, path: Path) -> None:
        """Makes or replaces an object from a file, in parts where it is large. Raises: StorageError, OSError."""
        self._check(key)
        with path.open("rb") as file, translated(self._uri(key)):
            _client().upload_fileobj(file, self.bucket, self.prefix + key)

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are not there are no error. Raises: StorageError."""
        rest = iter(keys)
        while batch := [{"Key": self.prefix + key} for key in islice(rest, DELETED_AT_ONCE)]:
            with translated(self.uri):
                answer: Mapping[str, Any] = _client().delete_objects(
                    Bucket=self.bucket,
                    Delete={"Objects": batch, "Quiet": True},  # type: ignore[typeddict-item]
                )
            for error in answer.get("Errors", ()):
                if error.get("Code") != "NoSuchKey":
                    raise _from_code(self._uri(error.get("Key", "")[len(self.prefix) :]), 0, error)

    def refusal(self, key: str) -> str | None:
        """Why `key` cannot be stored here; None if it can."""
        try:
            size = len((self.prefix + key).encode())
        except UnicodeEncodeError:
            return "is not valid Unicode"
        if not key:
            return "is empty"
        return f"has {size:,} bytes with its prefix, over {LONGEST_KEY:,}" if size > LONGEST_KEY else None

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


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Raises a StorageError about `uri` in place of whatever boto3 raises inside."""
    try:
        yield
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise _from_code(uri, status, error.response.get("Error", {})) from None
    except WITHOUT_CREDENTIALS as error:
        raise BadCredentials(uri, f"no usable AWS credentials ({type(error).__name__})") from None
    except (exceptions.ConnectionError, exceptions.HTTPClientError, HTTPError) as error:
        # Its own message can quote a header, and with it a session token.
        raise StorageError(uri, f"no answer from the storage server ({type(error).__name__})") from None
    except (ElementTree.ParseError, ResponseParserError, KeyError) as error:
        raise StorageError(uri, f"the storage server's answer is not readable ({type(error).__name__})") from None
    except exceptions.BotoCoreError as error:
        raise StorageError(uri, " ".join(str(error).split())) from None


def _from_code(uri: str, status: int, error: Mapping[str, Any]) -> StorageError:
    code = str(error.get("Code", status))
    if code == "NoSuchBucket":
        return NoSuchFolder(uri, "there is no such bucket")
    if status == 404 or code == "NoSuchKey":
        return Vanished(uri, "there is no such object")
    if status == 412:
        return Changed(uri, "is no longer what was listed")
    reason = f"{' '.join(str(error.get('Message', '')).split())} ({code})".lstrip()
    if code == "InvalidObjectState":  # comes with 403, and yet it says only that the object is archived
        return StorageError(uri, reason)
    if code in BAD_CREDENTIALS:
        return BadCredentials(uri, reason)
    return (Denied if status in (401, 403) or code == "AccessDenied" else StorageError)(uri, reason)


_LOCK = threading.Lock()


def _client() -> "S3Client":
    """One for each process and AWS environment: threads share it, a store in another process makes its own."""
    with _LOCK:
        return _made(os.getpid(), tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache(maxsize=4)
def _made(process: int, environment: tuple[tuple[str, str], ...]) -> "S3Client":
    session = boto3.Session()
    client: S3Client = session.client(
        "s3",
        region_name=dict(environment).get("AWS_REGION") or session.region_name or "us-east-1",
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 5},
            max_pool_connections=64,
            connect_timeout=10,
            read_timeout=60,
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
