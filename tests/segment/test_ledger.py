"""The ledger: what is recorded is known again, whatever the parts it lies in, and nothing else is."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unet.segment import ledger as module
from unet.segment.ledger import CHANGED, COLUMNS, DONE, FAILED, MODEL_CHANGED, NEW, Ledger, LedgerIndex, hash64
from unet.settings import RequestError

Row = dict[str, Any]


def row(key: str, **values: Any) -> Row:
    """A row `done`: etag e, 10 bytes, fingerprint f, mask etag m."""
    first = {"key": key, "etag": "e", "size": 10, "fingerprint": "f", "status": "done", "error": None}
    return first | {"mask_etag": "m", "time": 0.0} | values


def table(rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), COLUMNS)


def ask(index: LedgerIndex, key: str, etag: str = "e", size: int = 10, model: str = "f", failed: str = "g") -> int:
    return int(index.lookup([key], [etag], [size], model, failed)[0])


def parts(folder: Path) -> set[Path]:
    return set(folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(folder: Path) -> Ledger:
    return Ledger(str(folder))


def test_an_empty_ledger_knows_nothing(ledger: Ledger) -> None:
    index = ledger.load(masks=True)
    assert len(index) == 0
    assert ledger.next_fence() == 1
    assert ask(index, "a") == NEW
    assert index.mask_hashes(["a", "b"]).tolist() == [0, 0]
    assert index.unseen().tolist() == []
    assert index.lookup([], [], [], "f", "g").tolist() == []
    ledger.compact(1)


def test_each_object_has_its_outcome(ledger: Ledger) -> None:
    ledger.append(table([row("a"), row("b"), row("c"), row("d", status="failed", fingerprint="g", error="bad")]), 1)
    ledger.append(table([row("gone", status="removed")]), 1)
    states = ledger.load().lookup(
        ["gone", "d", "x", "a", "b", "c"], ["e", "e", "e", "e", "other", "e"], [10, 10, 10, 10, 10, 11], "f", "g"
    )
    assert states.tolist() == [NEW, FAILED, NEW, DONE, CHANGED, CHANGED]
    assert states.dtype == np.uint8


def test_an_object_is_redone_exactly_when_its_etag_its_size_or_the_model_changes(ledger: Ledger) -> None:
    ledger.append(table([row("a")]), 1)
    index = ledger.load()
    assert ask(index, "a") == DONE
    assert ask(index, "a", failed="other") == DONE
    assert ask(index, "a", etag="same size, other bytes") == CHANGED
    assert ask(index, "a", size=11) == CHANGED
    assert ask(index, "a", model="other") == MODEL_CHANGED
    assert ask(index, "a", etag="other", model="other") == CHANGED


def test_a_failure_is_tried_again_when_its_bytes_or_its_limits_change(ledger: Ledger) -> None:
    ledger.append(table([row("a", status="failed", fingerprint="g", error="too large", mask_etag=None)]), 1)
    index = ledger.load()
    assert ask(index, "a") == FAILED
    assert ask(index, "a", model="other") == FAILED
    assert ask(index, "a", failed="other") == MODEL_CHANGED
    assert ask(index, "a", etag="other") == CHANGED


def test_the_highest_fence_wins_then_the_latest_time_then_the_last_row(ledger: Ledger) -> None:
    ledger.append(table([row("a", etag="new", time=1)]), 2)
    ledger.append(table([row("a", etag="late writer", time=9)]), 1)
    ledger.append(table([row("b", etag="new", time=9)]), 1)
    ledger.append(table([row("b", etag="old", time=1), row("c", etag="old"), row("c", etag="new")]), 1)
    for _ in range(2):
        index = ledger.load()
        assert len(index) == 3
        assert [ask(index, key, "new") for key in "abc"] == [DONE] * 3
        ledger.compact(3)


def test_a_fence_is_one_above_the_highest(ledger: Ledger, folder: Path) -> None:
    for fence in (3, 12, 5):
        ledger.append(table([row("a")]), fence)
    (folder / "000000000099-notes.txt").write_text("not a part")
    assert ledger.next_fence() == 13
    ledger.compact(13)
    assert ledger.next_fence() == 14
    assert (folder / "000000000099-notes.txt").exists()


def test_columns_left_out_are_null_and_the_time_is_now(ledger: Ledger) -> None:
    ledger.append(table([row("a"), row("b")]), 1)
    ledger.append(pa.table({"key": ["a"], "status": ["removed"]}), 1)
    assert [ask(ledger.load(), key) for key in "ab"] == [NEW, DONE]


def test_masks_are_known_by_their_etags(ledger: Ledger) -> None:
    ledger.append(table([row("a", mask_etag="one"), row("b", mask_etag=None), row("c", mask_etag="three")]), 1)
    hashes = ledger.load(masks=True).mask_hashes(["c", "b", "x", "a"])
    assert hashes.tolist() == [hash64("three"), 0, 0, hash64("one")]


def test_done_rows_never_asked_for_are_unseen_and_have_their_keys(ledger: Ledger) -> None:
    ledger.append(table([row("a"), row("gone"), row("bad", status="failed"), row("gone", etag="older", time=-1)]), 1)
    ledger.append(table([row("gone too"), row("gone"), row("pruned", status="removed")]), 1)
    index = ledger.load()
    index.lookup(["a", "x"], ["other", "e"], [10, 10], "f", "g")
    unseen = index.unseen()
    assert set(unseen.tolist()) == {hash64("gone"), hash64("gone too")}
    assert sorted(key for keys in ledger.find_keys(unseen) for key in keys) == ["gone", "gone too"]
    assert list(ledger.find_keys(unseen[:0])) == []


ODD_KEYS = ["", "/a", "a//b", "../a", "a b+%?#", "日本/🦊.jpg", "e\u0301", "\u00e9", "a\0b", "\x7f", "a\n", "k" * 1024]


def test_odd_keys_are_kept_as_they_are(ledger: Ledger) -> None:
    ledger.append(table(row(key, etag=f"e-{key}") for key in ODD_KEYS), 1)
    ledger.append(table([row("a")]), 1)
    ledger.compact(1)
    index = ledger.load()
    assert [ask(index, key, f"e-{key}") for key in ODD_KEYS] == [DONE] * len(ODD_KEYS)
    hashes = np.array([hash64(key) for key in ODD_KEYS], np.uint64)
    assert {key for keys in ledger.find_keys(hashes) for key in keys} == set(ODD_KEYS)


def test_an_undecodable_file_name_is_always_new(ledger: Ledger) -> None:
    ledger.append(table([row("caf\u00e9.jpg")]), 1)
    assert ask(ledger.load(), b"caf\xc3\xa9.jpg".decode("ascii", "surrogateescape")) == NEW


def test_compaction_leaves_one_small_part_that_answers_the_same(ledger: Ledger, folder: Path) -> None:
    for number in range(6):
        ledger.append(table(row(f"{key}", etag=f"{number}", time=number) for key in range(number, 20)), 1)
    before = {key: ask(ledger.load(), f"{key}", f"{min(key, 5)}") for key in range(20)}
    ledger.compact(2)
    assert set(before.values()) == {DONE}
    assert before == {key: ask(ledger.load(), f"{key}", f"{min(key, 5)}") for key in range(20)}
    (part,) = parts(folder)
    assert pq.read_metadata(part).num_rows == 20
    ledger.compact(3)
    assert parts(folder) == {part}


def test_a_merged_row_keeps_the_fence_it_was_written_under(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old row in a small part does not outlive the newer one in a part too large to be merged."""
    ledger.append(table([row("a", etag="old")]), 1)
    ledger.append(table([row("b")]), 1)
    ledger.append(table([row("a", etag="new"), *(row(f"{number}") for number in range(1000))]), 2)
    monkeypatch.setattr(module, "_SMALL_PART", max(part.stat().st_size for part in parts(folder)))
    ledger.compact(3)
    assert len(parts(folder)) == 2
    assert ask(ledger.load(), "a", "new") == DONE
    assert [len(keys) for keys in ledger.find_keys(np.array([hash64("a"), hash64("b")], np.uint64))] in ([1, 1], [2])


def test_parts_are_merged_in_groups(ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        ledger.append(table([row(f"{number}"), row("gone", status="removed")]), 1)
    size = next(iter(parts(folder))).stat().st_size
    monkeypatch.setattr(module, "_MERGED_PART", 4 * size)
    ledger.compact(2)
    assert 2 <= len(parts(folder)) <= 4
    assert len(ledger.load()) == 8


def test_removed_rows_go_when_one_part_is_left(ledger: Ledger, folder: Path) -> None:
    ledger.append(table([row("a"), row("b")]), 1)
    ledger.append(table([row("a", status="removed")]), 2)
    ledger.compact(3)
    (part,) = parts(folder)
    assert pq.read_table(part)["key"].to_pylist() == ["b"]
    assert ask(ledger.load(), "a") == NEW


class CrashError(Exception):
    """The process ends here."""


class CrashingStore:
    """A store whose process ends after `deletes` deletions; a bucket makes them in no certain order."""

    def __init__(self, store: Any, deletes: int, step: int) -> None:
        self.list, self.get, self.put, self._delete = store.list, store.get, store.put, store.delete
        self._deletes, self._step = deletes, step

    def delete(self, keys: Iterable[str]) -> None:
        for key in sorted(keys)[:: self._step]:
            if not self._deletes:
                raise CrashError
            self._deletes -= 1
            self._delete([key])


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("deletes", range(5))
def test_a_crash_in_compaction_changes_no_answer(ledger: Ledger, folder: Path, deletes: int, step: int) -> None:
    ledger.append(table([row("a"), row("b", etag="old")]), 1)
    ledger.append(table([row("b"), row("a", status="removed")]), 2)
    ledger.append(table([row("c", status="failed", fingerprint="g"), row("b", etag="late", time=5)]), 1)
    crashing = Ledger(str(folder))
    crashing._store = CrashingStore(crashing._store, deletes, step)  # type: ignore[assignment]
    if deletes < 4:  # three parts, then the merged one with its row `removed`
        with pytest.raises(CrashError):
            crashing.compact(3)
    else:
        crashing.compact(3)
    for _ in range(2):
        index = ledger.load()
        assert [ask(index, key) for key in "abc"] == [NEW, DONE, FAILED]
        ledger.compact(4)
    assert len(parts(folder)) == 1


class RacingStore:
    """A store in which another process compacts after the first part is read."""

    def __init__(self, store: Any, ledger: Ledger) -> None:
        self.list, self._get, self._ledger = store.list, store.get, ledger

    def get(self, key: str) -> bytes:
        body: bytes = self._get(key)
        self._ledger.compact(9)
        return body


def test_a_compaction_elsewhere_does_not_disturb_a_reader(ledger: Ledger, folder: Path) -> None:
    for number in range(3):
        ledger.append(table([row(f"{number}")]), 1)
    reader = Ledger(str(folder))
    reader._store = RacingStore(reader._store, ledger)  # type: ignore[assignment]
    index = reader.load()
    assert [ask(index, f"{number}") for number in range(3)] == [DONE] * 3
    for number in range(3, 6):
        ledger.append(table([row(f"{number}")]), 1)
    hashes = np.array([hash64(f"{number}") for number in range(6)], np.uint64)
    assert sorted(key for keys in reader.find_keys(hashes) for key in keys) == [f"{number}" for number in range(6)]


def test_a_ledger_in_a_bucket_is_kept_as_one_in_a_folder_is(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/masks/_segment/ledger")
    assert len(ledger.load()) == 0
    for number in range(3):
        ledger.append(table([row("a/\u00e9.jpg", etag=f"{number}", time=number), row(f"{number}")]), 1)
    for _ in range(2):
        assert ask(ledger.load(), "a/\u00e9.jpg", "2") == DONE
        assert len(ledger.load()) == 4
        assert ledger.next_fence() == 2
        ledger.compact(1)
    assert list(ledger.find_keys(np.array([hash64("a/\u00e9.jpg")], np.uint64))) == [["a/\u00e9.jpg"]]


def test_a_damaged_part_is_named_with_the_remedy(ledger: Ledger, folder: Path) -> None:
    ledger.append(table([row(f"{number}") for number in range(100)]), 1)
    (part,) = parts(folder)
    whole = part.read_bytes()
    flipped = bytearray(whole)
    flipped[60] ^= 1  # among the keys
    for body in (b"", b"no Parquet", whole[:-100], bytes(flipped)):
        part.write_bytes(body)
        with pytest.raises(RequestError, match=rf"{part.name}: is damaged; delete it"):
            list(ledger.find_keys(np.array([hash64("7")], np.uint64)))
    pq.write_table(pa.table({"key": ["a"]}), part)
    with pytest.raises(RequestError, match="is damaged"):
        ledger.load()


def test_a_part_of_a_newer_version_is_refused(ledger: Ledger, folder: Path) -> None:
    ledger.append(table([row("a")]), 1)
    (part,) = parts(folder)
    pq.write_table(pq.read_table(part).replace_schema_metadata({"format": "2"}), part)
    with pytest.raises(RequestError, match=rf"{part.name}: was written by a newer version"):
        ledger.load()


def test_the_look_up_takes_32_bytes_a_row(ledger: Ledger) -> None:
    ledger.append(table(row(f"{number}", etag=f"{number}") for number in range(5000)), 1)
    index = ledger.load()
    assert len(index) == 5000
    assert index.nbytes / len(index) <= 32


def test_hashes_tell_their_parts_apart() -> None:
    hashes = [hash64(*parts) for parts in (("a",), ("a", 1), ("a1",), ("a", 11), ("a1", 1), ("",), ("", ""))]
    assert len(set(hashes)) == len(hashes)
    assert all(0 <= value < 1 << 64 for value in hashes)


def random_rows(rng: np.random.Generator, clock: Iterator[int]) -> list[Row]:
    return [
        row(
            f"{rng.integers(30)}",
            etag=f"{rng.integers(2)}",
            size=int(rng.integers(2)),
            fingerprint=f"{rng.integers(2)}",
            status=str(rng.choice(["done", "done", "failed", "removed"])),
            time=next(clock),
        )
        for _ in range(rng.integers(1, 12))
    ]


def expected(row: Row | None, etag: str, size: int, model: str, failed: str) -> int:
    if row is None or row["status"] == "removed":
        return NEW
    if (row["etag"], row["size"]) != (etag, size):
        return CHANGED
    if row["fingerprint"] != (model if row["status"] == "done" else failed):
        return MODEL_CHANGED
    return DONE if row["status"] == "done" else FAILED


@pytest.mark.parametrize("seed", range(4))
def test_it_answers_as_a_dictionary_does(ledger: Ledger, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:
        monkeypatch.setattr(module, "_MERGED_PART", 12_000)  # two or three parts
    rng = np.random.default_rng(seed)
    newest: dict[str, tuple[tuple[int, int], Row]] = {}
    clock = iter(rng.permutation(1000).tolist())
    fence = 1
    for turn in range(20):
        fence += int(rng.integers(2))
        if rng.random() < 0.2:
            ledger.compact(fence)
            clock = iter((1000 * turn + rng.permutation(1000)).tolist())
        rows = random_rows(rng, clock)
        ledger.append(table(rows), fence)
        for item in rows:
            order = (fence, item["time"])
            newest[item["key"]] = max(newest.get(item["key"], (order, item)), (order, item), key=lambda pair: pair[0])
        index = ledger.load()
        assert len(index) == sum(item["status"] != "removed" for _, item in newest.values())
        for key in map(str, rng.permutation(35)[:20]):
            question = (f"{rng.integers(2)}", int(rng.integers(2)), f"{rng.integers(2)}", f"{rng.integers(2)}")
            assert ask(index, key, *question) == expected(newest[key][1] if key in newest else None, *question)
