"""Who may write to an output: one run at a time.

On S3 the lease is an object that its holder replaces every few seconds, on condition that it is still its own. Who
finds it held watches it for one lifetime on a clock of its own: if it changes the holder lives, if not it is taken
over. So a holder that could not renew it for a lifetime must not write, and learns at the next renewal whether it may
again. In a local folder the lease is the kernel's lock on a file, which ends with the process. No clocks are compared.
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from unet import storage
from unet.s3 import S3Store
from unet.stored import Changed, Denied, StorageError, Unreachable, Vanished

BEATS = 6
"""Renewals in a lifetime."""

LOOKS = 12
"""Looks at another's lease in a lifetime."""

NOWHERE = "0" * 32
"""An etag that no lease has."""


class Held(Exception):  # noqa: N818
    """Another run holds the output, or has taken it over."""


class Lease(Protocol):
    """What its holder may do."""

    @property
    def fence(self) -> int:
        """Higher than that of every earlier holder."""

    @property
    def conditional(self) -> bool:
        """Whether the output makes or replaces an object on condition of what is there."""

    def left(self) -> float:
        """For how many seconds nobody else can hold the output; 0 or less while that is not sure."""

    def confirm(self) -> None:
        """Returns once it is sure that nobody else holds the output. Raises: Held."""

    def release(self) -> None:
        """Lets others have the output at once. Raises: StorageError."""


def acquire(output: str, key: str, *, run: str, lifetime: float, fence: int) -> Lease:
    """The lease of `output`, at `key` in it, for the run of this name; `lifetime` [seconds] is this holder's.

    `fence`: higher than that of everything recorded there. Waits up to the lifetime of a holder that may be dead.

    Raises:
        Held: another run lives.
        StorageError: the lease cannot be read or written.
    """
    if output.startswith("s3://"):
        return _BucketLease(output, key, _Claim(run, fence, lifetime, _here()))
    return _FolderLease(storage.join(output, key), run, fence)


def holds(output: str, key: str, run: str) -> bool:
    """Whether this run has the lock of a local output. Raises: StorageError."""
    try:
        return storage.read(storage.join(output, key)).decode(errors="replace").startswith(f"{run} ")
    except Vanished:
        return False


class _FolderLease:
    """The kernel's lock on a file, which says who has it."""

    conditional = False

    def __init__(self, path: str, run: str, fence: int) -> None:
        self.fence = fence
        self._file = os.open(_made(path), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 1000, 0).decode(errors="replace").strip()
            raise Held(f"another run holds it ({holder})") from None
        except OSError as error:
            print(f"warning: {path} cannot be locked ({error.strerror}); let no other run write to this output")
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{run} on {_here()}\n".encode(), 0)

    def left(self) -> float:
        return float("inf")

    def confirm(self) -> None:
        """The kernel sees to it."""

    def release(self) -> None:
        os.close(self._file)


@dataclass(frozen=True)
class _Claim:
    """What the object of a lease says."""

    run: str
    fence: int
    lifetime: float
    """Seconds without a renewal after which it may be taken over."""
    host: str
    released: bool = False

    def to_bytes(self) -> bytes:
        return json.dumps({"format": 1, **self.__dict__, "beat": secrets.token_hex(8)}).encode()


class _BucketLease:
    """An object, and the thread that renews it."""

    def __init__(self, output: str, key: str, claim: _Claim) -> None:
        self._key, self._claim = key, claim
        self._store = S3Store(output, retry_for=claim.lifetime / BEATS)
        self._uri = storage.join(output, key)
        self._held, self._over = threading.Condition(), threading.Event()
        self._lost = ""
        self.conditional = True
        self._etag = self._take()
        self._probe()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def fence(self) -> int:
        return self._claim.fence

    def left(self) -> float:
        with self._held:
            return 0.0 if self._lost else self._deadline - time.monotonic()

    def confirm(self) -> None:
        while self.left() <= 0:
            if self._lost:
                raise Held(self._lost)
            with self._held:
                self._held.wait(0.2)

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        if not self._lost:
            self._claim = replace(self._claim, released=True)
            with suppress(Held):  # then it was no longer ours to release
                self._renew()

    def _take(self) -> str:
        """Makes the object ours, after a look at whose it is; returns its etag."""
        before, etag = self._read()
        if before is not None and not before.get("released"):
            before, etag = self._watch(before, etag)
        fence = int(before.get("fence", 0)) + 1 if before is not None else 0
        self._claim = replace(self._claim, fence=max(self._claim.fence, fence))
        began = time.monotonic()
        try:
            made = self._put(etag)
        except Changed:  # by another, or by us if the first answer was lost
            now, made = self._read()
            if now is None or now.get("run") != self._claim.run:
                raise Held("another run has just begun") from None
        self._deadline = began + self._claim.lifetime
        return made

    def _watch(self, before: Mapping[str, Any], etag: str) -> tuple[Mapping[str, Any] | None, str]:
        """The lease as it is once its holder is dead or has released it."""
        lifetime = float(before.get("lifetime", self._claim.lifetime))
        who = f"{before.get('run')} on {before.get('host')}"
        print(f"{self._uri}: held by {who}; watching for {lifetime:g} s whether it lives", flush=True)
        deadline = time.monotonic() + lifetime
        while (rest := deadline - time.monotonic()) > 0:
            time.sleep(min(rest, lifetime / LOOKS))
            now, etag_now = self._read()
            if etag_now == etag:
                continue
            if now is None or now.get("released"):
                return now, etag_now
            raise Held(f"another run holds it ({who})")
        print(f"{self._uri}: shows no sign of life; taking over", flush=True)
        return before, etag

    def _probe(self) -> None:
        """Finds out whether the server minds conditions."""
        try:
            self._etag = self._store.put(self._key, self._claim.to_bytes(), over=NOWHERE)
        except (Changed, Vanished):
            return
        except Unreachable:
            return  # a renewal will tell
        except StorageError:  # it refuses them
            pass
        self.conditional = False
        print(
            f"warning: the server of {self._uri} does not know conditional writes; two runs that begin within moments "
            "of each other may both write",
            flush=True,
        )

    def _beat(self) -> None:
        while not self._over.wait(self._claim.lifetime / BEATS):
            try:
                self._renew()
            except Held as error:
                with self._held:
                    self._lost = str(error)
                    self._held.notify_all()
                return
            except Denied as error:
                print(f"warning: the lease cannot be renewed: {error}", flush=True)
            except StorageError:
                continue  # the next beat tries again

    def _renew(self) -> None:
        began = time.monotonic()
        if not self.conditional:
            self._look()
        try:
            self._etag = self._put(self._etag if self.conditional else None)
        except Changed:
            self._look()
            return  # it is ours: only its answer was lost, or another beat of ours came between
        with self._held:
            self._deadline = began + self._claim.lifetime
            self._held.notify_all()

    def _look(self) -> None:
        """Reads the lease, which should be ours. Raises: Held."""
        now, etag = self._read()
        if now is None or (now.get("run"), now.get("fence")) != (self._claim.run, self._claim.fence):
            who = "nobody" if now is None else f"{now.get('run')} on {now.get('host')}"
            raise Held(f"this run was not seen for {self._claim.lifetime:g} s, and {who} has taken it over")
        self._etag = etag

    def _put(self, over: str | None) -> str:
        return self._store.put(self._key, self._claim.to_bytes(), content_type="application/json", over=over)

    def _read(self) -> tuple[Mapping[str, Any] | None, str]:
        """What the object says, {} if that is not readable, and its etag; None and "" if there is none."""
        try:
            seen = self._store.head(self._key)
            said = json.loads(self._store.get(self._key, seen.etag))
        except Vanished:
            return None, ""
        except Changed:
            return self._read()
        except ValueError:
            said = {}
        return said if isinstance(said, dict) else {}, seen.etag


def _made(path: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return path


def _here() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"
