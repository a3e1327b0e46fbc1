"""Finds the object that ends its worker, by a crash or by exhausting its memory, so that all others are segmented.

The first attempt processes all items of a chunk together. If the worker ended during it, the next attempt, in another
worker, processes them one by one, and records which one it is at, so that further attempts skip an item during which
workers ended. Attempts are recorded in the run's key-value store, which outlives workers.
"""

from collections.abc import Callable, Mapping
from typing import Any

from unet.segment.item import Item
from unet.segment.ledger import hash64
from unet.segment.run_spec import RunSpec
from unet.segment.run_store import lookup, publish
from unet.segment.semaphore import WeightedSemaphore

MAX_CRASHES = 2
"""Workers that must end while they process one item alone before it is given up. One may end by chance, as with a
machine that is taken away."""

REASON = f"ended its worker {MAX_CRASHES + 1} times, alone too: it crashes the decoder, or its memory does not suffice"


class Quarantine:
    """Processes items so that an item that ends the worker is found. One for each process."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        # While one item is processed alone nothing else is in this process, or the wrong item could be blamed.
        self._exclusion = WeightedSemaphore(1 << 16)

    def __call__(self, items: list[Item], process: Callable[[list[Item]], object]) -> None:
        """Call `process` with the items that are not settled; settle those that end workers as failed."""
        items = [item for item in items if not item.status]
        if not items:
            return
        name = f"quarantine/{hash64(items[0].key, items[-1].key, len(items)):016x}"
        earlier_attempt = lookup(self._spec, name)
        if earlier_attempt is None:
            publish(self._spec, name, {})
            with self._exclusion.hold(1):
                process(items)
        else:
            self._process_one_by_one(name, earlier_attempt, items, process)
        publish(self._spec, name, None)

    def _process_one_by_one(
        self, name: str, attempt: Mapping[str, Any], items: list[Item], process: Callable[[list[Item]], object]
    ) -> None:
        crashes: dict[str, int] = dict(attempt.get("crashes", {}))
        if key := attempt.get("at"):
            crashes[key] = crashes.get(key, 0) + 1
        # Suspects first: if the worker ends again, nothing that it has processed is lost with it.
        for item in sorted(items, key=lambda item: -crashes.get(item.key, 0)):
            if crashes.get(item.key, 0) >= MAX_CRASHES:
                item.settle("failed", REASON, permanent=True)
                continue
            with self._exclusion.hold(self._exclusion.capacity):
                publish(self._spec, name, {"crashes": crashes, "at": item.key})
                process([item])
                publish(self._spec, name, {"crashes": crashes})
