"""How a job ends early: SIGTERM, which `ray job stop` sends too, SIGINT and a time limit end it within two seconds.

Shutdown hooks record by then what is finished; what is in flight is given up. The same command goes on: segmenting from
its ledger, training from its last checkpoint, all else from its beginning.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGTERM, signal.SIGINT)

HOOK_SECONDS = 1.6
"""Seconds that all shutdown hooks together may take: `ray job stop` sends SIGKILL soon after."""

_hooks: list[Callable[[], None]] = []
"""What is called before this process ends early, the last one first."""


@contextmanager
def shutdown_hook(hook: Callable[[], None]) -> Iterator[None]:
    """Call `hook`, from another thread, if the job is ended early within the block."""
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


@contextmanager
def time_limit(seconds: float | None, flag: str) -> Iterator[None]:
    """End the job early, as SIGTERM does, if the block takes more than `seconds`; None: no limit."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, _end, (f"stopped by {flag}", 128 + signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """End this process with 128 + the signal's number, from a thread of its own: the main one may be deep in a call.

    The interpreter writes the number of every signal to a pipe, whoever else handles it too; Ray replaces handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, lambda *_: None) for number in handled}
    watcher = threading.Thread(target=_watch, args=(read,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        os.write(write, b"\0")
        watcher.join()  # for ever, if a signal has come: then this process is about to end
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


@contextmanager
def preserve_signal_handlers() -> Iterator[None]:
    """Restore the handlers of signals after the block: Ray installs its own, which print a stack before a job ends."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _watch(read: int) -> None:
    while number := os.read(read, 1)[0]:
        if number in SIGNALS:
            _end(f"stopped by {signal.Signals(number).name}", 128 + number)


def _end(message: str, code: int) -> None:
    def announce() -> None:
        with suppress(OSError):  # whoever read it may be gone
            print(f"{message}; the same command goes on", file=sys.stderr, flush=True)

    try:
        deadline = time.monotonic() + HOOK_SECONDS
        for hook in (announce, *reversed(_hooks)):
            thread = threading.Thread(target=hook, daemon=True)  # it may wait, for a reader or a storage server
            thread.start()
            thread.join(max(0.0, deadline - time.monotonic()))
    finally:
        os._exit(code)


def skip_destructors() -> None:
    """Let this process, of an actor that ends by itself, end without the destructors of Ray's core: now and then they
    wait for one another for ever, and the process outlives Ray."""
    atexit.register(os._exit, 0)
