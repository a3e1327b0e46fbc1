"""An HTTP proxy in front of an S3 server: it writes down every request, and makes some of them go wrong.

A rule names a verb, a pattern of the path with its query, which of the matching requests it means (`nth`, from 0; all
without), and what happens to them. The first rule that means a request decides.
"""

import http.client
import re
import socket
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

Action = Literal[
    "500", "501", "503", "403", "reset", "cut", "flip", "empty_page", "hold", "hold_answer", "denied", "no_upload"
]

ERROR = "<Error><Code>{}</Code><Message>as the test wishes</Message></Error>"
CODES = {
    "500": "InternalError",
    "501": "NotImplemented",
    "503": "SlowDown",
    "403": "ExpiredToken",
    "denied": "AccessDenied",
    "no_upload": "NoSuchUpload",
}
STATUS = {"denied": 403, "no_upload": 404}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
AFTER_EMPTY = "after-empty:"  # begins the token of an empty page; then the token of the page in whose place it came


@dataclass
class Rule:
    verb: str
    path: str
    nth: range | None
    action: Action
    seen: int = 0

    def means(self, verb: str, path: str) -> bool:
        if self.verb not in ("*", verb) or not fnmatchcase(path, self.path):
            return False
        self.seen += 1
        return self.nth is None or self.seen - 1 in self.nth


class Proxy(ThreadingHTTPServer):
    """Serves from construction until the end of its `with` block, at `url`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        self.target = urlsplit(target).netloc
        self.url = f"http://{address}:{self.server_port}"
        self.requests: list[tuple[str, str]] = []
        self.times: list[float] = []
        """When each of them came, on the monotonic clock."""
        self.rules: list[Rule] = []
        self.refused_keys: set[str] = set()
        """Access keys that are told that they have expired."""
        self.lock = threading.Lock()
        self.holds, self.release = threading.Event(), threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def add(self, *, verb: str = "*", path: str = "*", nth: range | None = None, action: Action) -> None:
        self.rules.append(Rule(verb, path, nth, action))

    def action(self, verb: str, path: str, authorization: str, body: bytes = b"") -> Action | None:
        with self.lock:
            self.requests.append((verb, path))
            self.times.append(time.monotonic())
            if any(f"Credential={key}/" in authorization for key in self.refused_keys):
                return "403"
            return next((rule.action for rule in self.rules if rule.means(verb, path)), None)

    def answer_to_condition(self, headers: dict[str, str]) -> Action | None:
        """Called with the headers of a write, which it may change; names what happens in place of the write."""
        return None

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that went away are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.title(): value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        action = self.server.action(self.command, self.path, self.headers.get("Authorization", ""), body)
        if self.command == "PUT":
            action = action or self.server.answer_to_condition(headers)
        if action == "reset":
            self.hang_up()
        elif action == "hold":
            self.hold()
        elif action in CODES:
            error = b"" if self.command == "HEAD" else ERROR.format(CODES[action]).encode()
            answered = {"Content-Length": "0"}
            if action == "500":  # a header that botocore stumbles over, and rclone sends
                answered["x-amz-checksum-crc32"] = "AAAAAA=="
            self.reply(STATUS.get(action) or int(action), answered, error)
        elif action == "empty_page":
            token = AFTER_EMPTY + parse_qs(urlsplit(self.path).query).get("continuation-token", [""])[0]
            page = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
            self.reply(200, {}, f"<ListBucketResult>{page}</ListBucketResult>".encode())
        else:
            path = self.path.replace(quote(AFTER_EMPTY, safe=""), "")
            path = re.sub("&continuation-token=(?=&|$)", "", path)
            with closing(http.client.HTTPConnection(self.server.target)) as upstream:
                upstream.request(self.command, path, body or None, headers)
                answer = upstream.getresponse()
                data = answer.read()
            if action == "hold_answer":
                self.hold()
                return
            self.reply(answer.status, {"Content-Length": "0", **dict(answer.getheaders())}, data, action)

    def reply(self, status: int, headers: dict[str, str], body: bytes, action: Action | None = None) -> None:
        if action == "flip":
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", headers["Content-Length"] if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if action == "cut" else body)
        if action == "cut":
            self.hang_up()

    def hold(self) -> None:
        """Leaves the request without an answer, until the test has done what it wanted meanwhile."""
        self.server.holds.set()
        self.server.release.wait(60)
        self.close_connection = True

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815
