"""The clients of S3 in this process: boto3's, with listings read ten times as fast as botocore reads them, and that of
s3_direct.py for the bytes of objects.

Settings come from the standard AWS environment alone, or from a profile of its files first.
"""

import html
import logging
import os
import re
import threading
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config

from unet.storage.s3_direct import CONNECT_SECONDS, READ_SECONDS, DirectClient, answer_probe, direct_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_LOCK = threading.Lock()

Environment = tuple[tuple[str, str], ...]


def client(profile: str | None = None) -> "S3Client":
    """Return the client of this process and AWS environment, which its threads share.

    `profile`: of the AWS configuration files. Its credentials are taken and no others; its endpoint and region, if it
    names any, win over those of the environment.
    """
    with _LOCK:
        return _cached_client(os.getpid(), _environment(), profile)[0]


def object_client(bucket: str, profile: str | None = None) -> "DirectClient | S3Client":
    """Return the client of the objects of a bucket, which the threads of this process share. `profile`: as above."""
    with _LOCK:
        key = os.getpid(), _environment(), profile
        direct = _cached_direct_client(*key, bucket)
        return _cached_client(*key)[0] if direct is None or direct.redirected else direct


def _environment() -> Environment:
    return tuple(sorted((name, os.environ[name]) for name in os.environ if name.startswith("AWS_")))


def discard_clients() -> None:
    """Make new clients from now on, which load their credentials again."""
    with _LOCK:
        _cached_client.cache_clear()
        _cached_direct_client.cache_clear()


@lru_cache(maxsize=8)
def _cached_client(
    process: int, environment: Environment, profile: str | None
) -> "tuple[S3Client, botocore.session.Session]":
    logging.getLogger("botocore").setLevel(logging.WARNING)  # on INFO it says in every process where credentials are
    core = botocore.session.Session(profile=profile)
    own = core.get_scoped_config() if profile else {}
    services = core.full_config.get("services", {}).get(own.get("services"), {})
    session = boto3.Session(botocore_session=core)
    made: S3Client = session.client(
        "s3",
        region_name=own.get("region") or dict(environment).get("AWS_REGION") or session.region_name or "us-east-1",
        endpoint_url=services.get("s3", {}).get("endpoint_url") or own.get("endpoint_url"),
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 1},  # S3Store repeats
            max_pool_connections=64,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
        ),
    )
    # botocore calls handlers of this pattern before its own, which are registered for "before-parse.s3".
    made.meta.events.register("before-parse.*.ListObjectsV2", _take_entries)
    made.meta.events.register("before-send.s3.GetObject", answer_probe)  # type: ignore[arg-type]
    if payer := dict(environment).get("AWS_REQUEST_PAYER"):
        made.meta.events.register("before-call.s3", partial(_add_payer, payer))
    return made, core


@lru_cache(maxsize=64)
def _cached_direct_client(
    process: int, environment: Environment, profile: str | None, bucket: str
) -> DirectClient | None:
    return direct_client(*_cached_client(process, environment, profile), bucket)


def _add_payer(payer: str, params: dict[str, Any], **_: Any) -> None:
    params["headers"]["x-amz-request-payer"] = payer


_ENTRY_PATTERNS = [re.compile(f"<{name}>([^<]*)</{name}>") for name in ("Key", "Size", "ETag", "StorageClass")]
_QUOTE = "&quot;"


def _take_entries(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Take the entries out of a page of a listing, and leave the rest of it to botocore, which is ten times slower.

    Where an entry lacks a field or has one twice, or something stands between the entries, all is left to botocore.
    """
    text, end = response_dict["body"].decode(errors="replace"), "</Contents>"
    if response_dict["status_code"] != 200 or "<RestoreStatus>" in text:
        return
    keys, sizes, etags, classes = (pattern.findall(text) for pattern in _ENTRY_PATTERNS)
    classes = classes or [""] * len(keys)
    counts = {text.count("<Contents>"), text.count(end), *map(len, (keys, sizes, etags, classes))}
    neighbours = text.count("</Contents><Contents>") or len(re.findall(r"</Contents>\s*<Contents>", text))
    if len(counts) == 1 and neighbours == len(keys) - 1:
        etags = [etag.removeprefix(_QUOTE).removesuffix(_QUOTE) for etag in etags]
        keys, etags = ([html.unescape(value) if "&" in value else value for value in found] for found in (keys, etags))
        customized_response_dict["Entries"] = keys, sizes, etags, classes
        response_dict["body"] = (text[: text.find("<Contents>")] + text[text.rfind(end) + len(end) :]).encode()
