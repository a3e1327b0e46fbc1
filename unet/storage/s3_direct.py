"""The bytes of objects to and from S3, carried by libcurl.

A GET and a PUT of 60 kB cost a worker 0.27 of the CPU time that they cost through boto3 (measured in tests/README.md).
boto3 is asked once for each bucket where its objects are and how a request to them looks; the addresses, credentials,
certificates and proxies are those of its session. A bucket that needs more than a signature of version 4 goes by boto3
itself, as all other requests do.
"""

import base64
import hashlib
import hmac
import http.client
import os
import re
import uuid
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import botocore.session
import pycurl
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from unet.storage.faults import Damaged, StorageError, Unreachable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_SECONDS = 10
"""Seconds in which a connection is made, at most."""

READ_SECONDS = 20
"""Seconds without a byte after which a request is given up."""

MIN_BUFFER, MAX_BUFFER = 1 << 16, 1 << 21
"""Bytes of libcurl's buffer for what is sent: a call from libcurl to Python fetches so much."""

PROBE = uuid.uuid4().hex
"""Key of the request that is not sent, but shows how boto3 would send it."""

HEADERS = {
    "ChecksumAlgorithm": "x-amz-sdk-checksum-algorithm",
    "ChecksumCRC32": "x-amz-checksum-crc32",
    "ContentType": "content-type",
    "IfMatch": "if-match",
    "IfNoneMatch": "if-none-match",
}
"""Parameters of boto3 that are headers."""

DIGESTS: dict[str, Callable[[bytes], bytes]] = {
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "sha1": lambda data: hashlib.sha1(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}
"""Checksums of S3 by the name in their header, in the order in which botocore looks for them."""

REDIRECTIONS = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
"""Error codes of a bucket in another region, which boto3 finds; beside a status of 301, 302 or 307."""

USELESS = {
    pycurl.E_BAD_FUNCTION_ARGUMENT,
    pycurl.E_OUT_OF_MEMORY,
    pycurl.E_SSL_CACERT_BADFILE,
    pycurl.E_UNSUPPORTED_PROTOCOL,
    pycurl.E_URL_MALFORMAT,
}
"""Errors of libcurl that would come again with every repetition."""


def answer_probe(request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
    """Answer the probe with its own address and headers, in place of sending it: a handler of "before-send"."""
    if PROBE not in request.url:
        return None
    headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()}
    sent: Any = headers | {"x-url": request.url}
    return AWSResponse(request.url, 200, sent, BytesIO())


def direct_client(client: "S3Client", session: botocore.session.Session, bucket: str) -> "DirectClient | None":
    """Return what carries the objects of `bucket` as `client` would; None if only boto3 can."""
    if ":" in bucket or bucket.endswith("--x-s3"):  # an ARN, and a directory bucket, which has sessions of its own
        return None
    probe: Mapping[str, Any] = client.get_object(Bucket=bucket, Key=PROBE)
    headers = probe["ResponseMetadata"]["HTTPHeaders"]
    scope = re.match(r"AWS4-HMAC-SHA256 Credential=[^,]*/\d{8}/([^/,]+)/s3/", headers.get("authorization", ""))
    if scope is None or not headers["x-url"].endswith(f"/{PROBE}"):
        return None
    return DirectClient(client, session, headers, scope[1])


class DirectClient:
    """`get_object` and `put_object` of boto3's client for one bucket. Its threads have a connection each."""

    def __init__(self, client: "S3Client", session: botocore.session.Session, probe: Mapping[str, str], region: str):
        self.redirected = False
        """Whether the bucket turned out to be in another region, where boto3 finds it."""
        self._region = region
        self._credentials: Any = session.get_credentials()  # there are some, since the probe was signed
        url = urlsplit(probe["x-url"].removesuffix(PROBE))
        self._origin, self._path = f"{url.scheme}://{url.netloc}", url.path
        host = url.netloc.rpartition("@")[2]
        self._host = host.removesuffix(":443" if url.scheme == "https" else ":80")
        self.meta = client.meta
        config: Any = client.meta.config
        self._sign_body = (config.s3 or {}).get("payload_signing_enabled")
        self._verify = "x-amz-checksum-mode" in probe
        self._agent = f"user-agent: {probe['user-agent']}"
        self._payer = {name: value for name, value in probe.items() if name == "x-amz-request-payer"}
        bundle: Any = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE", True)
        self._certificates = get_cert_path(bundle)
        self._proxy = get_environ_proxies(self._origin).get(url.scheme, "")
        self._idle: list[pycurl.Curl] = []

    def get_object(self, **parameters: Any) -> dict[str, Any]:
        """Return the ETag and the Body, which is read and verified. Raise Damaged if it was cut short or altered."""
        uri, key, headers = self._translate(parameters)
        if self._verify:
            headers["x-amz-checksum-mode"] = "ENABLED"
        answer, data = self._request(uri, "GET", key, headers, None)
        for name, digest in DIGESTS.items() if self._verify else ():
            expected = answer.get(f"x-amz-checksum-{name}", "-")
            if "-" in expected:  # that of an object which was put in parts is one of their checksums
                continue
            if base64.b64encode(digest(data)).decode() != expected:
                raise Damaged(uri, f"came cut short or altered ({name})")
            break
        return {"Body": BytesIO(data)} | ({"ETag": answer["etag"]} if "etag" in answer else {})

    def put_object(self, *, Body: bytes, **parameters: Any) -> dict[str, Any]:  # noqa: N803
        """Make or replace an object; return its ETag."""
        uri, key, headers = self._translate(parameters)
        return {"ETag": self._request(uri, "PUT", key, headers, Body)[0]["etag"]}

    def _translate(self, parameters: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
        """Return the URI, the key and the headers that boto3's parameters mean."""
        headers = self._payer | {header: parameters[name] for name, header in HEADERS.items() if name in parameters}
        headers |= {f"x-amz-meta-{name.lower()}": text for name, text in parameters.get("Metadata", {}).items()}
        return f"s3://{parameters['Bucket']}/{parameters['Key']}", parameters["Key"], headers

    def _request(
        self, uri: str, verb: str, key: str, headers: dict[str, str], data: bytes | None
    ) -> tuple[dict[str, str], bytes]:
        """Return headers and body of the response; raise ClientError, as boto3, if its status is not of success."""
        if not all(value.isascii() and value.isprintable() for value in headers.values()):
            raise StorageError(uri, "a header of the request would not be printable ASCII")
        path = self._path + quote(key, safe="/~")
        self._sign(verb, path, headers, data or b"")
        status, answer, body = self._perform(uri, verb, path, headers, data)
        found = _fields(body) if status >= 300 or (verb == "PUT" and body) else {}
        if status < 300:
            if not found:
                return answer, body
            status = 500  # S3 had begun to answer before it failed
        error = {"Code": str(status), "Message": http.client.responses.get(status, "")} | found
        if status in (301, 302, 307) or error["Code"] in REDIRECTIONS:
            self.redirected = True
            raise Unreachable(uri, f"the bucket is elsewhere ({error['Code']})")
        response: Any = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(response, verb)

    def _sign(self, verb: str, path: str, headers: dict[str, str], data: bytes) -> None:
        """Add the headers of Signature Version 4 (AWS, "Authenticating Requests: Using the Authorization Header").

        As in botocore the body is signed too, unless TLS and a checksum protect it.
        """
        credentials = self._credentials.get_frozen_credentials()
        protected = self._origin.startswith("https") and "x-amz-checksum-crc32" in headers
        sign_body = not protected if self._sign_body is None else self._sign_body
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(data).hexdigest() if sign_body else "UNSIGNED-PAYLOAD"
        headers |= {"host": self._host, "x-amz-date": stamp, "x-amz-content-sha256": digest}
        if credentials.token:
            headers["x-amz-security-token"] = credentials.token
        names = sorted(headers)
        signed = ";".join(names)
        lines = [f"{name}:{' '.join(headers[name].split())}" for name in names]
        request = "\n".join([verb, path, "", *lines, "", signed, digest])
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        key = f"AWS4{credentials.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={signed}, "
            f"Signature={signature}"
        )

    def _perform(
        self, uri: str, verb: str, path: str, headers: dict[str, str], data: bytes | None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the response to one request."""
        try:
            handle = self._idle.pop()
        except IndexError:
            handle = pycurl.Curl()
        body, lines = BytesIO(), list[bytes]()
        try:
            self._set_options(handle, headers)
            handle.setopt(pycurl.URL, self._origin + path)
            handle.setopt(pycurl.WRITEFUNCTION, body.write)
            handle.setopt(pycurl.HEADERFUNCTION, lines.append)
            if data is not None:
                # Without a function to seek, libcurl does not send a body again where the connection was lost: each
                # attempt has a guard.
                handle.setopt(pycurl.UPLOAD, 1)
                handle.setopt(pycurl.INFILESIZE_LARGE, len(data))
                handle.setopt(pycurl.READFUNCTION, BytesIO(data).read)
                handle.setopt(pycurl.UPLOAD_BUFFERSIZE, min(max(len(data), MIN_BUFFER), MAX_BUFFER))
            handle.perform()
        except pycurl.error as error:
            code, message = error.args
            status = handle.getinfo(pycurl.RESPONSE_CODE)
            handle.close()
            if 200 <= status < 300 and verb == "GET":
                raise Damaged(uri, f"came cut short or altered ({message})") from None
            kind = StorageError if code in USELESS else Unreachable
            raise kind(uri, f"no answer from the storage server ({message})") from None
        status = handle.getinfo(pycurl.RESPONSE_CODE)
        handle.reset()  # what it refers to, the data among it; it keeps its connection
        self._idle.append(handle)
        return status, _parse_headers(lines), body.getvalue()

    def _set_options(self, handle: pycurl.Curl, headers: Mapping[str, str]) -> None:
        """Set what all requests share."""
        lines = [f"{name}: {value}" if value else f"{name};" for name, value in headers.items()]
        handle.setopt(pycurl.HTTPHEADER, [*lines, self._agent, "accept-encoding: identity", "accept:", "expect:"])
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.PATH_AS_IS, 1)
        handle.setopt(pycurl.CAINFO, self._certificates)
        handle.setopt(pycurl.PROXY, self._proxy)
        handle.setopt(pycurl.NOPROXY, "")
        handle.setopt(pycurl.MAXCONNECTS, 1)
        handle.setopt(pycurl.CONNECTTIMEOUT, CONNECT_SECONDS)
        handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)
        handle.setopt(pycurl.LOW_SPEED_TIME, READ_SECONDS)
        handle.setopt(pycurl.NOSIGNAL, 1)  # signals are the process's, not a thread's


def _parse_headers(lines: list[bytes]) -> dict[str, str]:
    """Return the headers of the last response among these lines; before it there may be those of a proxy."""
    start = max(place for place, line in enumerate(lines) if line.startswith(b"HTTP/"))
    fields = (line.decode("latin-1").partition(":") for line in lines[start + 1 :])
    return {name.lower(): value.strip() for name, _, value in fields}


def _fields(body: bytes) -> dict[str, str]:
    """Return Code and Message of an error in XML; {} if it is none."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return {}
    found = {name: root.findtext(f"{{*}}{name}") for name in ("Code", "Message")}
    return {name: value for name, value in found.items() if value}
