"""Translates what boto3 and botocore raise into the exceptions of faults.py. No message holds a secret."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from botocore import exceptions
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from unet.storage import faults

BAD_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NotSignedUp",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
"""Error codes of S3 for credentials with which no request succeeds."""

TRANSIENT = {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown"}
"""Error codes of requests that may succeed when they are repeated, as may all with a status of 429 or from 500 on."""

NO_SPACE = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
"""Error codes of servers whose storage is full."""

CHECKSUM, NO_CHECKSUM = (
    re.compile(r"checksum|crc32|x-amz-sdk-|trailer", re.IGNORECASE),
    ("if it knows no CRC32, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
)
"""What servers say that refuse a checksum which they do not know, and the remedy."""

CONNECTION_LOST = (exceptions.ConnectionClosedError, exceptions.ReadTimeoutError, exceptions.ResponseStreamingError)
"""Kinds of HTTPClientError where the server closed the connection or did not answer in time. The other kinds, as an
invalid header, would come again with every repetition."""

NO_CREDENTIALS = (
    exceptions.CredentialRetrievalError,
    exceptions.LoginError,
    exceptions.NoAuthTokenError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
    exceptions.UnknownTokenProviderError,
)
"""What botocore raises where it finds no usable credentials."""

BODY_ERRORS = (exceptions.FlexibleChecksumError, exceptions.HTTPClientError, exceptions.IncompleteReadError, HTTPError)
"""What is raised while the body of a response is read, after the point up to which botocore repeats a request."""


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Raise a StorageError about `uri` in place of what boto3 raises inside."""
    try:
        yield
    except faults.StorageError:
        raise
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise fault_from_code(uri, status, error.response.get("Error", {})) from None
    except exceptions.ProfileNotFound as error:
        raise faults.BadCredentials(uri, f"there is no profile {error.kwargs['profile']}") from None
    except NO_CREDENTIALS as error:
        raise faults.BadCredentials(uri, f"no usable AWS credentials ({type(error).__name__})") from None
    except exceptions.MissingDependencyException:  # of access points of several regions, which ask for SigV4a
        raise faults.MissingPackage(uri, "its requests cannot be signed without the package awscrt") from None
    except exceptions.HTTPClientError as error:
        # The message of this error can quote a header, and with it a session token.
        kind = faults.Unreachable if isinstance(error, CONNECTION_LOST) else faults.StorageError
        raise kind(uri, f"the request could not be sent, or its answer not read ({type(error).__name__})") from None
    except (exceptions.ConnectionError, HTTPError) as error:
        raise faults.Unreachable(uri, f"no answer from the storage server ({type(error).__name__})") from None
    except (ElementTree.ParseError, ResponseParserError, KeyError, AttributeError) as error:
        # AttributeError: botocore on a response with a status from 500 on and the header of a checksum, as of rclone.
        raise faults.Unreachable(uri, f"the storage server's answer is not readable ({type(error).__name__})") from None
    except exceptions.BotoCoreError as error:
        raise faults.StorageError(uri, " ".join(str(error).split())) from None


def fault_from_code(uri: str, status: int, error: Mapping[str, Any]) -> faults.StorageError:
    """Return the exception for an error response of S3. `status`: of HTTP; `error`: its Code and Message."""
    code = str(error.get("Code", status))
    if code == "NoSuchBucket":
        return faults.NoSuchFolder(uri, "there is no such bucket")
    if status == 404 or code == "NoSuchKey":
        return faults.Vanished(uri, "there is no such object")
    if code in NO_SPACE or status == 507:
        return faults.Full(uri, "there is no room left on the storage server")
    if code == "NotImplemented" or status == 501:  # the response of servers without conditional writes
        reason = str(error.get("Message", ""))
        remedy = f": {NO_CHECKSUM}" if CHECKSUM.search(reason) else ""
        return faults.Unsupported(uri, f"the storage server cannot do this{remedy}")
    if code == "ConditionalRequestConflict":  # another write to the key is in progress
        return faults.Unreachable(uri, "was written at the same time")
    if status == 412:
        return faults.Changed(uri, "is no longer what was listed")
    reason = f"{' '.join(str(error.get('Message', '')).split())} ({code})".lstrip()
    if code == "InvalidObjectState":  # status 403, though it means that the object is archived
        return faults.Archived(uri, f"is archived; restore it first: {reason}")
    if code in BAD_CREDENTIALS:
        return faults.BadCredentials(uri, reason)
    if code in TRANSIENT or status == 429 or status >= 500:
        return faults.Unreachable(uri, reason)
    if status == 400 and CHECKSUM.search(reason):
        return faults.StorageError(uri, f"{reason}; {NO_CHECKSUM}")
    return (faults.Denied if status in (401, 403) or code == "AccessDenied" else faults.StorageError)(uri, reason)
