"""The record of a training run, an entry per epoch: `metrics.jsonl` and TensorBoard events.

Both lie in the run's folder. Files are rewritten whole, so they are never seen half-written and need no appending.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet.storage import store
from unet.storage.objects import join_uri

METRICS = "metrics.jsonl"

Entry = dict[str, Any]


class Journal:
    """Continues after the epochs of `entries`; what an earlier attempt wrote of later ones is dropped."""

    def __init__(self, folder: str, entries: Sequence[Entry] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter  # with PyTorch, which those who only read do without

        self._folder = folder
        self.entries = list(entries)
        self._events = tempfile.TemporaryDirectory(prefix="tensorboard-")
        self._writer = SummaryWriter(self._events.name, purge_step=len(self.entries) + 1)

    def add(self, entry: Entry) -> None:
        """Record an epoch."""
        self.entries.append(entry)
        lines = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in self.entries)
        store.write(join_uri(self._folder, METRICS), lines.encode())
        for name, value in scalars(self.entries[-1]):
            self._writer.add_scalar(name, value, entry["epoch"])
        self._writer.flush()
        for file in Path(self._events.name).iterdir():
            store.write(join_uri(self._folder, f"tensorboard/{file.name}"), file.read_bytes())


def read_entries(folder: str) -> list[Entry]:
    """Return the epochs that `metrics.jsonl` in `folder` records; none if there is no such file."""
    uri = join_uri(folder, METRICS)
    if not store.exists(uri):
        return []
    return [json.loads(line) for line in store.read(uri).splitlines()]


def scalars(entry: Entry) -> list[tuple[str, float]]:
    """Return the numbers of an epoch under the names that trackers show, as val/miou."""
    found = []
    for name, value in entry.items():
        group, _, rest = name.partition("_")
        title = f"{group}/{rest}" if group in ("train", "val") else f"run/{name}"
        if isinstance(value, dict):
            found += [(f"{title}/{key}", item) for key, item in value.items() if item is not None]
        elif value is not None and name != "epoch":
            found.append((title, value))
    return found
