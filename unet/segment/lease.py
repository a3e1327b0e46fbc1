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

from unet.storage import store
from unet.storage.faults import Changed, Denied, StorageError, Unsupported, Vanished
from unet.storage.listed import join
from unet.storage.s3 import S3Store

BEATS = 6
"""Renewals in a lifetime."""

LOOKS = 12
"""Looks at another's lease in a lifetime."""

NO_SUCH_ETAG = "0" * 32
"""An etag that no lease has."""


class LeaseLost(Exception):  # noqa: N818
    """Another run holds the output, or has taken it over."""


class LeaseUnconfirmed(StorageError):  # noqa: N818
    """The lease could not be renewed for so long that this run must not go on."""


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

    def trouble(self) -> str | None:
        """Why that will not become sure again; None while it may."""

    def confirm(self) -> None:
        """Returns once it is sure that nobody else holds the output. Raises: LeaseLost, LeaseUnconfirmed."""

    def release(self) -> None:
        """Lets others have the output at once. Raises: StorageError."""


def acquire(output: str, key: str, *, run: str, lifetime: float, fence: int) -> Lease:
    """The lease of `output`, at `key` in it, for the run of this name; `lifetime` [seconds] is this holder's.

    `fence`: higher than that of everything recorded there. Waits up to the lifetime of a holder that may be dead.

    Raises:
        LeaseLost: another run lives.
        StorageError: the lease cannot be read or written.
    """
    if output.startswith("s3://"):
        return _BucketLease(output, key, _Claim(run, fence, lifetime, _here()))
    return _FolderLease(join(output, key), run, fence)


def now() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def holds(output: str, key: str, run: str) -> bool:
    """Whether this run has the lock of a local output. Raises: StorageError."""
    try:
        return store.read(join(output, key)).decode(errors="replace").startswith(f"{run} ")
    except Vanished:
        return False


class _FolderLease:
    """The kernel's lock on a file, which says who has it."""

    conditional = False

    def __init__(self, path: str, run: str, fence: int) -> None:
        self.fence = fence
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._lock(path)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{run} on {_here()}\n".encode(), 0)
        except OSError as error:
            raise StorageError(path, f"cannot be locked ({error.strerror})") from None

    def _lock(self, path: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 1000, 0).decode(errors="replace").strip()
            raise LeaseLost(f"another run holds it ({holder})") from None
        except OSError as error:  # some network file systems have no locks
            print(f"warning: {path} cannot be locked ({error.strerror}); let no other run write to this output")

    def left(self) -> float:
        return float("inf")

    def trouble(self) -> None:
        return None

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
        self._uri = join(output, key)
        self._held, self._over = threading.Condition(), threading.Event()
        self._lost, self._released = "", False
        self._fault: StorageError | None = None
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
            return 0.0 if self._lost or self._released else self._deadline - now()

    def trouble(self) -> str | None:
        with self._held:
            hopeless = isinstance(self._fault, Denied) or now() > self._deadline + self._claim.lifetime
            if self._fault is None or now() < self._deadline or not hopeless:
                return None
            return f"the lease could not be renewed ({self._fault.strerror})"

    def confirm(self) -> None:
        while self.left() <= 0:
            if self._lost:
                raise LeaseLost(self._lost)
            if trouble := self.trouble():
                raise LeaseUnconfirmed(self._uri, trouble)
            with self._held:
                self._held.wait(0.2)

    def release(self) -> None:
        with self._held:
            self._released = True  # whatever happens now, nobody of this run may write any more
        self._over.set()
        self._thread.join()
        if self._lost:
            return
        self._claim = replace(self._claim, released=True)
        with suppress(LeaseLost):  # then it was no longer ours to release
            if not self._renew():  # an answer was lost before
                self._renew()

    def _take(self) -> str:
        """Makes the object ours, after a look at whose it is; returns its etag."""
        before, etag = self._read()
        if before is not None and not before.get("released"):
            before, etag = self._watch(before, etag)
        fence = int(before.get("fence", 0)) + 1 if before is not None else 0
        self._claim = replace(self._claim, fence=max(self._claim.fence, fence))
        began = now()
        try:
            made = self._put(etag)
        except Unsupported:
            self.conditional = False
            made = self._put(None)
        except Changed:  # by another, or by us if the first answer was lost
            seen, made = self._read()
            if seen is None or seen.get("run") != self._claim.run:
                raise LeaseLost("another run has just begun") from None
        self._deadline = began + self._claim.lifetime
        return made

    def _watch(self, before: Mapping[str, Any], etag: str) -> tuple[Mapping[str, Any] | None, str]:
        """The lease as it is once its holder is dead or has released it."""
        lifetime = float(before.get("lifetime", self._claim.lifetime))
        who = f"{before.get('run')} on {before.get('host')}"
        print(f"{self._uri}: held by {who}; watching for {lifetime:g} s whether it lives", flush=True)
        deadline = now() + lifetime
        while (rest := deadline - now()) > 0:
            time.sleep(min(rest, lifetime / LOOKS))
            seen, etag_seen = self._read()
            if etag_seen == etag:
                continue
            if seen is None or seen.get("released"):
                return seen, etag_seen
            raise LeaseLost(f"another run holds it ({who})")
        print(f"{self._uri}: shows no sign of life; taking over", flush=True)
        return before, etag

    def _probe(self) -> None:
        """Finds out whether the server minds conditions."""
        if self.conditional:
            try:
                self._etag = self._store.put(self._key, self._claim.to_bytes(), over=NO_SUCH_ETAG)
            except Changed:
                return
            except Unsupported:
                pass
        self.conditional = False
        print(
            f"warning: the server of {self._uri} does not know conditional writes; two runs that begin within moments "
            "of each other may both write",
            flush=True,
        )

    def _beat(self) -> None:
        while not self._over.wait(self._claim.lifetime / BEATS):
            fault: StorageError | None = None
            try:
                self._renew()
            except LeaseLost as error:
                with self._held:
                    self._lost = str(error)
                    self._held.notify_all()
                return
            except StorageError as error:  # the next beat tries again
                fault = error
            except Exception as error:  # so does it here; `trouble` says it
                fault = StorageError(self._uri, type(error).__name__)  # its text could hold a secret
            with self._held:
                self._fault = fault

    def _renew(self) -> bool:
        """Replaces the object; False if it was not seen to be replaced, and yet is still ours. Raises: LeaseLost."""
        began = now()
        if not self.conditional:
            self._look()
        try:
            self._etag = self._put(self._etag if self.conditional else None)
        except Changed:
            self._look()
            return False
        with self._held:
            self._deadline = began + self._claim.lifetime
            self._held.notify_all()
        return True

    def _look(self) -> None:
        """Reads the lease, which should be ours. Raises: LeaseLost."""
        seen, etag = self._read()
        if seen is None or (seen.get("run"), seen.get("fence")) != (self._claim.run, self._claim.fence):
            who = "nobody" if seen is None else f"{seen.get('run')} on {seen.get('host')}"
            raise LeaseLost(f"this run was not seen for {self._claim.lifetime:g} s, and {who} has taken it over")
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


def _here() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"
