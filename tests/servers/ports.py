"""Ports of this machine."""

import socket
import time
from contextlib import suppress


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind((address, 0))
        return int(free.getsockname()[1])


def wait_for_port(port: int, address: str = "127.0.0.1", seconds: float = 10) -> None:
    """Wait until something listens on a port. Raise TimeoutError after so many seconds."""
    for _ in range(round(10 * seconds)):
        with suppress(OSError), socket.create_connection((address, port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no answer from {address}:{port}")
