"""Finds the object that ends its worker, by a crash or by exhausting its memory, so that the others go on.

A first attempt works on all items of a chunk together. If it was a worker's end, the attempts after it, in another
worker, work on one item at a time, and note on which. What the attempts know of one another is noted outside of them.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from unet.segment.ledger import hash64
from unet.segment.segmenter import Item

STRIKES = 2
"""How often a worker must end while it works on one item alone. Once may be chance: a machine that is taken away."""

REASON = f"ended its worker {STRIKES + 1} times, alone too: it crashes the decoder, or its memory does not suffice"


class Quarantine:
    """One for each process and step. `noted(name)` is what `note(name, value)` was last called with, or None."""

    def __init__(self, step: str, note: Callable[[str, Any], None], noted: Callable[[str], Any]) -> None:
        self._step, self._note, self._noted = step, note, noted
        self._turns = _Turns()

    def __call__(self, items: list[Item], work: Callable[[list[Item]], object]) -> None:
        """Calls `work` with the items that have not ended, together or one by one; a fatal one is ended as failed."""
        items = [item for item in items if not item.status]
        if not items:
            return
        name = f"trial/{self._step}/{hash64(items[0].key, items[-1].key, len(items)):016x}"
        before = self._noted(name)
        if before is None:
            self._note(name, {})
            with self._turns.together():
                work(items)
        else:
            self._one_by_one(name, before, items, work)
        self._note(name, None)

    def _one_by_one(
        self, name: str, before: Mapping[str, Any], items: list[Item], work: Callable[[list[Item]], object]
    ) -> None:
        strikes: dict[str, int] = dict(before.get("strikes", {}))
        if last := before.get("at"):
            strikes[last] = strikes.get(last, 0) + 1
        for item in sorted(items, key=lambda item: -strikes.get(item.key, 0)):  # suspects first: no work is lost
            if strikes.get(item.key, 0) >= STRIKES:
                item.end("failed", REASON, permanent=True)
                continue
            with self._turns.alone():
                self._note(name, {"strikes": strikes, "at": item.key})
                work([item])
                self._note(name, {"strikes": strikes})


class _Turns:
    """Work together, and work alone, which excludes all other of this process: a strike must hit the right item."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._together, self._waiting, self._alone = 0, 0, False

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._alone and not self._waiting)
            self._together += 1
        try:
            yield
        finally:
            with self._free:
                self._together -= 1
                self._free.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._free:
            self._waiting += 1
            self._free.wait_for(lambda: not self._alone and not self._together)
            self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._free:
                self._alone = False
                self._free.notify_all()
