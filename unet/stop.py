"""How a job ends early: SIGTERM, which `ray job stop` sends too, and SIGINT end it within two seconds, wherever it is.

What is finished is recorded by then, and what is in flight is given up: the same command goes on.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Ends this process with 128 + the signal's number, from a thread of its own: the main one may be deep in a call.

    The interpreter writes the number of every signal to a pipe, whoever else handles it too; Ray replaces handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, lambda *_: None) for number in heard}
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
def keeping_handlers() -> Iterator[None]:
    """Undoes what the block does to the handlers of signals; Ray's print a stack before a job ends."""
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
            print(f"stopped by {signal.Signals(number).name}; the same command goes on", file=sys.stderr, flush=True)
            os._exit(128 + number)
