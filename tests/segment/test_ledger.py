"""The ledger: what is recorded is known again, each key once and in order, whatever the parts it lies in."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unet.segment import compaction, ledger_part
from unet.segment import ledger as module
from unet.segment.compaction import compact
from unet.segment.ledger import Ledger, LedgerCursor
from unet.segment.ledger_part import COLUMNS
from unet.settings import RequestError
from unet.storage.faults import Denied
from unet.storage.objects import Guard

Row = dict[str, Any]


def row(key: str, **values: Any) -> Row:
    """A row `done`: etag e, 10 bytes, fingerprint f, mask etag m."""
    first = {"key": key, "etag": "e", "size": 10, "fingerprint": "f", "status": "done", "error": None}
    return first | {"mask_etag": "m", "outputs": "mask", "input": "in", "time": 0.0} | values


def table(rows: Iterable[Row]) -> pa.Table:
    rows = list(rows)
    return pa.Table.from_pylist(rows, pa.schema([COLUMNS.field(name) for name in rows[0]]))


def recorded(ledger: Ledger) -> dict[str, Row]:
    """All rows that count by their keys, which come in order and once each."""
    rows = [row for table in ledger.rows() for row in table.to_pylist()]
    keys = [row["key"] for row in rows]
    assert keys == sorted(set(keys))
    return dict(zip(keys, rows, strict=True))


def etags(ledger: Ledger) -> dict[str, str]:
    return {key: row["etag"] for key, row in recorded(ledger).items()}


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def rows_on_disk(folder: Path) -> int:
    return sum(pq.read_metadata(part).num_rows for part in parts(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    return Ledger(str(folder))


@pytest.fixture(params=["in memory", "spilled", "in many ranges"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small runs and ranges, so that a few rows make many."""
    if request.param != "in memory":
        for name, value in {"RUN_ROWS": 3, "FAN_IN": 2, "BATCH_ROWS": 2, "GROUP_ROWS": 2}.items():
            for owner in (module, ledger_part):
                monkeypatch.setattr(owner, name, value, raising=False)
    if request.param == "in many ranges":
        monkeypatch.setattr(compaction, "RANGE_ROWS", (3, 3))
    return str(request.param)


def test_an_empty_ledger_knows_nothing(ledger: Ledger) -> None:
    assert recorded(ledger) == {}
    assert ledger.next_fence() == 1
    compact(ledger, 1)
    assert recorded(ledger) == {}


def test_the_highest_fence_wins_then_the_latest_time_then_the_last_row(ledger: Ledger, sizes: str) -> None:
    ledger.append(table([row("a", etag="new", time=1)]), 2)
    ledger.append(table([row("a", etag="late writer", time=9)]), 1)
    ledger.append(table([row("b", etag="new", time=9)]), 1)
    ledger.append(table([row("b", etag="old", time=1), row("c", etag="old"), row("c", etag="new")]), 1)
    for _ in range(2):
        assert etags(ledger) == dict.fromkeys("abc", "new")
        compact(ledger, 3)


def test_a_fence_is_one_above_the_highest(ledger: Ledger, folder: Path) -> None:
    for fence in (3, 12, 5):
        ledger.append(table([row("a")]), fence)
    (folder / "000000000099-notes.txt").write_text("not a part")
    assert ledger.next_fence() == 13
    compact(ledger, 13)
    assert ledger.next_fence() == 14
    assert (folder / "000000000099-notes.txt").exists()


def test_columns_left_out_are_null_and_the_time_is_now(ledger: Ledger) -> None:
    ledger.append(table([row("a"), row("b")]), 1)
    ledger.append(pa.table({"key": ["a"], "status": ["removed"]}), 1)
    assert recorded(ledger).keys() == {"b"}
    ledger.append(pa.table({"key": ["a"], "status": ["failed"]}), 1)
    assert recorded(ledger)["a"]["etag"] is None


ODD_KEYS = ["", "/a", "a//b", "../a", "a b+%?#", "日本/🦊.jpg", "e\u0301", "\u00e9", "a\0b", "\x7f", "a\n", "k" * 1024]
ODD_KEYS += ["\uffee", "\U00010000"]  # which UTF-16 would sort the other way round


def test_odd_keys_are_kept_as_they_are(ledger: Ledger, sizes: str) -> None:
    ledger.append(table(row(key, etag=f"e-{key}") for key in ODD_KEYS), 1)
    ledger.append(table([row("a")]), 1)
    for _ in range(2):
        assert etags(ledger) == {key: f"e-{key}" for key in ODD_KEYS} | {"a": "e"}
        compact(ledger, 1)


def test_a_cursor_takes_each_row_once_in_order(ledger: Ledger, sizes: str) -> None:
    ledger.append(table(row(key) for key in "abcdefgh"), 1)
    compact(ledger, 1)
    ledger.append(table(row(key) for key in ("bb", "d", "i")), 2)
    cursor = LedgerCursor(ledger.rows())
    asked = ("a", "az", "d", "d", "f")
    taken = [cursor.up_to(key)["key"].to_pylist() for key in asked]
    assert taken == [["a"], [], ["b", "bb", "c", "d"], [], ["e", "f"]]
    assert [key for rows in cursor.before(None) for key in rows["key"].to_pylist()] == ["g", "h", "i"]


def test_some_keys_are_found_without_reading_all_ranges(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "RANGE_ROWS", (5, 5))
    ledger.append(table(row(f"{number:02}") for number in range(40)), 1)
    compact(ledger, 1)
    ranges = ledger.contents().ranges
    assert len(ranges) >= 6
    for item in ranges[2:]:
        (folder / item.name).write_bytes(b"not to be read")
    keys = [key for rows in ledger.rows("03", "05") for key in rows["key"].to_pylist()]
    assert {"03", "04"} <= set(keys)


def test_promise_37_compaction_leaves_one_row_a_key(ledger: Ledger, folder: Path, sizes: str) -> None:
    for number in range(4):
        ledger.append(table(row(f"{key:02}", etag=f"{number}") for key in range(20)), number + 1)
        before = recorded(ledger)
        compact(ledger, number + 1)
        assert recorded(ledger) == before
        assert rows_on_disk(folder) == 20
    assert set(etags(ledger).values()) == {"3"}
    assert ledger.contents().recent == []
    left = parts(folder)
    compact(ledger, 5)
    assert parts(folder) == left


def test_compaction_writes_only_the_ranges_that_something_falls_into(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "RANGE_ROWS", (5, 5))
    ledger.append(table(row(f"{number:02}") for number in range(0, 80, 2)), 1)
    compact(ledger, 1)
    before = {item.name for item in ledger.contents().ranges}
    ledger.append(table([row("41"), row("80"), row("82")]), 2)
    compact(ledger, 2)
    after = {item.name for item in ledger.contents().ranges}
    assert len(before - after) == 2
    assert len(recorded(ledger)) == 43


def test_ranges_stay_of_a_middle_size(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "RANGE_ROWS", (10, 10))
    rng = np.random.default_rng(0)
    for turn in range(30):
        ledger.append(table(row(f"{key:05}") for key in rng.integers(0, 100_000, 12)), turn + 1)
        compact(ledger, turn + 1)
    sizes = [item.rows for item in ledger.contents().ranges]
    assert sum(sizes) > 300
    assert min(sizes) >= 5
    assert max(sizes) <= 20


def test_removed_rows_go(ledger: Ledger, folder: Path, sizes: str) -> None:
    ledger.append(table(row(key) for key in "abcdef"), 1)
    compact(ledger, 1)
    ledger.append(pa.table({"key": list("abcd"), "status": ["removed"] * 4}), 2)
    compact(ledger, 3)
    assert rows_on_disk(folder) == 2
    assert recorded(ledger).keys() == {"e", "f"}


class CrashError(Exception):
    """The process ends here."""


class CrashingStore:
    """A store whose process ends after so many writes and deletions; a bucket deletes in no certain order."""

    def __init__(self, store: Any, steps: int, order: int) -> None:
        self.list, self.get, self._store = store.list, store.get, store
        self._steps, self._order = steps, order

    def _step(self) -> None:
        if not self._steps:
            raise CrashError
        self._steps -= 1

    def put(self, key: str, data: bytes, guard: Guard) -> None:
        guard()
        self._step()
        self._store.put(key, data)

    def put_file(self, key: str, path: Path) -> None:
        self._step()
        self._store.put_file(key, path)

    def delete(self, keys: Iterable[str]) -> None:
        for key in sorted(keys)[:: self._order]:
            self._step()
            self._store.delete([key])


@pytest.mark.parametrize("order", [1, -1])
def test_promise_37_a_kill_at_any_step_of_a_compaction_changes_no_answer(
    ledger: Ledger, folder: Path, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "RANGE_ROWS", (2, 2))
    ledger.append(table([row(key, etag="old") for key in "bcdefgh"]), 1)
    compact(ledger, 1)
    crashes = 0
    for turn in range(3):
        fence = turn + 2
        ledger.append(table([row("a"), row("b"), row("d", etag=f"{turn}"), row("i", status="failed")]), fence)
        ledger.append(pa.table({"key": ["a", "c"], "status": ["removed"] * 2}), fence)
        expected = recorded(ledger)
        for steps in range(30):
            crashing = Ledger(str(folder))
            crashing.store = CrashingStore(crashing.store, steps, order)  # type: ignore[assignment]
            try:
                compact(crashing, fence)
            except CrashError:
                crashes += 1
            else:
                break
            assert recorded(ledger) == expected
        assert recorded(ledger) == expected
        assert rows_on_disk(folder) == len(expected)
    assert crashes > 15


def test_a_ledger_whose_parts_cannot_be_deleted_is_compacted_all_the_same(ledger: Ledger, folder: Path) -> None:
    class KeepingStore(CrashingStore):
        def delete(self, keys: Iterable[str]) -> None:
            raise Denied("ledger", "no right to delete")

    keeping = Ledger(str(folder))
    keeping.store = KeepingStore(keeping.store, 99, 1)  # type: ignore[assignment]
    for number in range(4):
        keeping.append(table(row(key, etag=f"{number}") for key in "abc"), number + 1)
        keeping.append(pa.table({"key": ["a"], "status": ["removed"]}), number + 1)
        compact(keeping, number + 1)
        assert etags(keeping) == dict.fromkeys("bc", f"{number}")
        assert keeping.contents().recent == []


def test_a_ledger_in_a_bucket_is_kept_as_one_in_a_folder_is(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/masks/_segment/ledger")
    assert recorded(ledger) == {}
    for number in range(3):
        ledger.append(table([row("a/\u00e9.jpg", etag=f"{number}", time=number), row(f"{number}")]), 1)
    for _ in range(2):
        assert etags(ledger) == {"a/\u00e9.jpg": "2"} | dict.fromkeys("012", "e")
        assert ledger.next_fence() == 2
        compact(ledger, 1)


def test_a_damaged_part_is_named_with_the_remedy(ledger: Ledger, folder: Path) -> None:
    ledger.append(table([row(f"{number}") for number in range(100)]), 1)
    (part,) = parts(folder)
    whole = part.read_bytes()
    flipped = bytearray(whole)
    flipped[60] ^= 1  # among the keys
    for body in (b"", b"no Parquet", whole[:-100], bytes(flipped)):
        part.write_bytes(body)
        with pytest.raises(RequestError, match=rf"{part.name}: is damaged; delete it"):
            recorded(ledger)
    pq.write_table(pa.table({"key": ["a"]}), part)
    with pytest.raises(RequestError, match="is damaged"):
        recorded(ledger)


def test_a_damaged_range_or_index_is_named_and_once_deleted_nothing_else_is_lost(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "RANGE_ROWS", (2, 2))
    ledger.append(table([row(key) for key in "abcdef"]), 1)
    compact(ledger, 1)
    (index,) = folder.glob("*.index.json")
    index.write_bytes(b"{")
    with pytest.raises(RequestError, match=rf"{index.name}: is damaged; delete it"):
        recorded(ledger)
    index.unlink()
    assert len(recorded(ledger)) == 6
    compact(ledger, 2)
    first = folder / ledger.contents().ranges[0].name
    first.write_bytes(b"")
    with pytest.raises(RequestError, match=rf"{first.name}: is damaged; delete it"):
        recorded(ledger)
    first.unlink()
    assert 2 <= len(recorded(ledger)) < 6


def test_a_part_of_a_newer_version_is_refused(ledger: Ledger, folder: Path) -> None:
    ledger.append(table([row("a")]), 1)
    (part,) = parts(folder)
    pq.write_table(pq.read_table(part).replace_schema_metadata({"format": "3"}), part)
    with pytest.raises(RequestError, match=rf"{part.name}: was written by a newer version"):
        recorded(ledger)
    part.unlink()
    ledger.append(table([row("a")]), 1)
    compact(ledger, 1)
    (index,) = folder.glob("*.index.json")
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 3}))
    with pytest.raises(RequestError, match=rf"{index.name}: was written by a newer version"):
        recorded(ledger)


def random_rows(rng: np.random.Generator, clock: Iterator[int]) -> list[Row]:
    return [
        row(
            f"{rng.integers(30)}",
            etag=f"{rng.integers(1000)}",
            status=str(rng.choice(["done", "done", "failed", "removed"])),
            time=float(next(clock)),
        )
        for _ in range(rng.integers(1, 12))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_it_answers_as_a_dictionary_does(ledger: Ledger, folder: Path, seed: int, sizes: str) -> None:
    rng = np.random.default_rng(seed)
    newest: dict[str, tuple[tuple[int, float], Row]] = {}
    clock, fence = iter(rng.permutation(1000).tolist()), 1
    for turn in range(20):
        fence += int(rng.integers(2))
        if rng.random() < 0.3:
            compact(ledger, fence)
            # What a compaction removed for good leaves no trace by which an older row, that comes late, is outdone.
            clock = iter((1000 * (turn + 1) + rng.permutation(1000)).tolist())
        rows = random_rows(rng, clock)
        ledger.append(table(rows), fence)
        for item in rows:
            order = (fence, item["time"])
            newest[item["key"]] = max(newest.get(item["key"], (order, item)), (order, item), key=lambda pair: pair[0])
        alive = {key: item["etag"] for key, (_, item) in newest.items() if item["status"] != "removed"}
        assert etags(ledger) == alive
    compact(ledger, fence)
    assert rows_on_disk(folder) == len(alive)
