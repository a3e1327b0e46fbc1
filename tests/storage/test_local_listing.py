"""A folder on a slow disk: the folders in it are scanned side by side, and its keys come in order all the same."""

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unet.storage.local import SCANS_AHEAD
from unet.storage.store import Store, open_store


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Store, list[str]]:
    """A folder of folders, three deep, and the keys in it, sorted."""
    names = [f"{a}{sign}{b}/{c}/{c}.png" for a in "ab" for sign in ("", "-", "/") for b in range(8) for c in "xy"]
    names += ["a.png", "b/0/z.png", "b-.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return open_store(str(tmp_path)), sorted(names)


class SlowScans:
    """`os.scandir` on a disk that takes 5 ms: `scanned` counts calls, `most` those at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scandir, self.lock = os.scandir, threading.Lock()
        self.scanned = self.running = self.most = 0
        monkeypatch.setattr(os, "scandir", self)

    def __call__(self, path: str) -> "Iterator[os.DirEntry[str]]":
        with self.lock:
            self.scanned, self.running = self.scanned + 1, self.running + 1
            self.most = max(self.most, self.running)
        time.sleep(0.005)
        with self.lock:
            self.running -= 1
        return self.scandir(path)


def test_folders_are_scanned_side_by_side_and_listed_in_order(
    tree: tuple[Store, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, names = tree
    slow = SlowScans(monkeypatch)
    assert [item.key for page in store.list() for item in page] == names
    assert 4 < slow.most <= SCANS_AHEAD
    for after, until in zip(random.Random(0).sample(names, 9), random.Random(1).sample([*names, "b~"], 9), strict=True):
        expected = [name for name in names if after < name <= until]
        assert [item.key for page in store.list(after, until) for item in page] == expected


def test_no_more_folders_are_scanned_than_are_soon_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet.storage.local.PAGE_SIZE", 1)
    for number in range(100):
        (tmp_path / f"{number:03}").mkdir()
        (tmp_path / f"{number:03}" / "a.png").write_bytes(b"")
    slow = SlowScans(monkeypatch)
    pages = open_store(str(tmp_path)).list()
    assert next(pages)[0].key == "000/a.png"
    time.sleep(0.2)
    assert slow.scanned <= 1 + SCANS_AHEAD
    assert len(list(pages)) == 99
    assert slow.scanned == 101
