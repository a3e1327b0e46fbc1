"""What boto3 raises, as faults of storage: every foreign exception is translated here. No message holds a secret."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from botocore import exceptions
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from unet.storage.faults import (
    BadCredentials,
    Changed,
    Denied,
    Full,
    NoSuchFolder,
    StorageError,
    Unreachable,
    Unsupported,
    Vanished,
)

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

PASSING = {
    "BandwidthLimitExceeded",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
"""Error codes of requests that may do better a little later; so may all with a status of 429 or from 500 on."""

FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
"""Error codes of servers without room."""

INTERRUPTED = (
    exceptions.ConnectionClosedError,
    exceptions.ReadTimeoutError,
    exceptions.ResponseStreamingError,
)
"""What botocore raises for a server that went away or fell silent; its other such errors are of our own making."""

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


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Raises a StorageError about `uri` in place of whatever boto3 raises inside."""
    try:
        yield
    except StorageError:
        raise
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise fault_from_code(uri, status, error.response.get("Error", {})) from None
    except WITHOUT_CREDENTIALS as error:
        raise BadCredentials(uri, f"no usable AWS credentials ({type(error).__name__})") from None
    except exceptions.HTTPClientError as error:
        # Its own message can quote a header, and with it a session token.
        kind = Unreachable if isinstance(error, INTERRUPTED) else StorageError
        raise kind(uri, f"the request could not be sent, or its answer not read ({type(error).__name__})") from None
    except (exceptions.ConnectionError, HTTPError) as error:
        raise Unreachable(uri, f"no answer from the storage server ({type(error).__name__})") from None
    except (ElementTree.ParseError, ResponseParserError, KeyError) as error:
        raise Unreachable(uri, f"the storage server's answer is not readable ({type(error).__name__})") from None
    except exceptions.BotoCoreError as error:
        raise StorageError(uri, " ".join(str(error).split())) from None


def fault_from_code(uri: str, status: int, error: Mapping[str, Any]) -> StorageError:
    """The fault that an error of the S3 API means; `status`: of HTTP, `error`: its Code and Message."""
    code = str(error.get("Code", status))
    if code == "NoSuchBucket":
        return NoSuchFolder(uri, "there is no such bucket")
    if status == 404 or code == "NoSuchKey":
        return Vanished(uri, "there is no such object")
    if code in FULL or status == 507:
        return Full(uri, "there is no room left on the storage server")
    if code == "NotImplemented" or status == 501:  # as servers say that do not know conditions
        return Unsupported(uri, "the storage server cannot do this")
    if code == "ConditionalRequestConflict":  # another write was under way
        return Unreachable(uri, "was written at the same time")
    if status == 412:
        return Changed(uri, "is no longer what was listed")
    reason = f"{' '.join(str(error.get('Message', '')).split())} ({code})".lstrip()
    if code == "InvalidObjectState":  # comes with 403, and yet it says only that the object is archived
        return StorageError(uri, reason)
    if code in BAD_CREDENTIALS:
        return BadCredentials(uri, reason)
    if code in PASSING or status == 429 or status >= 500:
        return Unreachable(uri, reason)
    return (Denied if status in (401, 403) or code == "AccessDenied" else StorageError)(uri, reason)
