"""Ranges of keys are listed side by side, and each key comes once, beside its row of the ledger."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest

from tests.jobs.bench import Bench, save_model
from unet.segment import compaction
from unet.segment.compaction import compact
from unet.segment.job import _prepare
from unet.segment.listing import Listing
from unet.segment.lookup import Lookup, _lists_from
from unet.segment.run_spec import RunSpec
from unet.storage.faults import StorageError
from unet.storage.local import LocalStore
from unet.storage.store import open_store

NAMES = [
    f"{folder}{number:03}.png" for folder in ("", "a/", "a/b/", "a.b/", "a-/", "ä/", "z/日本/") for number in range(9)
]
ODD = ["a", "a/b.jpg", "a//b.png", "+ %20.png", "&amp;<>.png", "~.png", "zz/.hidden.png", "notes.txt"]


@pytest.fixture(params=["local", "s3"])
def spec(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """A run over a hundred objects, two in three of them recorded, and thirty masks that have lost their image."""
    monkeypatch.setattr(compaction, "RANGE_ROWS", (10, 10))
    bench = Bench(str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket"))
    save_model(bench.model)
    images = open_store(bench.images)
    for key in (key for key in NAMES + ODD if images.key_error(key) is None):
        if not (request.param == "local" and key == "a"):
            images.put(key, b"x")
    _, spec = _prepare(bench.settings())
    there = [item for page in images.list() for item in page]
    rows = [(item.key, item.etag, item.size) for place, item in enumerate(there) if place % 3]
    rows += [(f"{folder}gone-{number:02}.png", "e", 1) for folder in ("", "a/", "zzz/") for number in range(10)]
    random.Random(0).shuffle(rows)
    columns: dict[str, Any] = dict(zip(("key", "etag", "size"), map(pa.array, zip(*rows, strict=True)), strict=True))
    given = {"fingerprint": spec.fingerprint, "status": "done", "outputs": "mask", "input": spec.input}
    columns |= {name: pa.repeat(value, len(rows)) for name, value in given.items()}
    spec.ledger.append(pa.table(columns), spec.fence)
    compact(spec.ledger, spec.fence)
    assert len(spec.ledger.contents().ranges) > 5
    return spec


@pytest.mark.parametrize("name", ["images--usw2-az1--x-s3", "images-point--usw2-az1--xa-s3"])
def test_a_directory_bucket_which_keeps_no_order_is_listed_from_one_end(name: str) -> None:
    assert not _lists_from(open_store(f"s3://{name}/a", retry_seconds=0), "b")  # without a request


def listed(spec: RunSpec, workers: int | None) -> tuple[dict[str, str], dict[str, Any], set[str]]:
    """Return the status of each key, the facts, and the keys that are orphaned."""
    object.__setattr__(spec.settings, "list_workers", workers)
    listing = Listing(spec)
    rows = [row for table in listing.tables() for row in table.to_pylist()]
    assert max(Counter(row["key"] for row in rows).values()) == 1
    facts = {"listed": listing.listed, "recorded": listing.recorded, "ended": listing.ended, **listing.facts}
    return {row["key"]: row["status"] for row in rows}, facts, set(listing.orphans())


@pytest.mark.parametrize("workers", [None, 2, 7])
def test_promise_37_ranges_side_by_side_find_what_one_listing_finds(spec: RunSpec, workers: int | None) -> None:
    alone, side_by_side = listed(spec, 1), listed(spec, workers)
    assert side_by_side == alone
    assert alone[1]["orphaned"] == 30
    assert Counter(alone[0].values())["unchanged"] > 30


@pytest.mark.parametrize(
    "bounds", [("", "a/004.png"), ("a/004.png", "a/b/002.png"), ("a/b/002.png", None), ("zz", None)]
)
def test_a_store_lists_what_comes_after_one_key_up_to_another(spec: RunSpec, bounds: tuple[str, str | None]) -> None:
    store, (after, until) = spec.input_store, bounds
    every = [item.key for page in store.list() for item in page]
    assert every == sorted(every)
    expected = [key for key in every if key > after and (until is None or key <= until)]
    assert [item.key for page in store.list(after, until) for item in page] == expected
    assert [key for page in store.list_tables(after, until) for key in page["key"].to_pylist()] == expected


def test_a_fault_in_one_range_ends_the_listing(spec: RunSpec) -> None:
    original = type(spec.input_store).list_tables

    def fail(self: Any, after: str = "", until: str | None = None) -> Iterator[pa.Table]:
        yield from original(self, after, until)
        if after:
            raise StorageError("images", "is on fire")

    with patch.object(type(spec.input_store), "list_tables", fail), pytest.raises(StorageError, match="is on fire"):
        listed(spec, 4)


def test_a_server_that_knows_no_place_to_begin_is_listed_from_one_end_to_the_other(
    tmp_path: Path, spec: RunSpec
) -> None:
    calls: list[tuple[str, str | None]] = []
    kind = type(spec.input_store)
    original = {name: getattr(kind, name) for name in ("list", "list_tables")}

    def ignoring(name: str) -> Any:
        def ignore(self: Any, after: str = "", until: str | None = None) -> Iterator[Any]:
            calls.append((after, until))
            pages: Iterator[Any] = original[name](self)
            return pages

        return ignore

    alone = listed(spec, 1)
    with patch.multiple(kind, **{name: ignoring(name) for name in original}):
        assert listed(spec, 4) == alone
    assert all(until is None for _, until in calls)


def test_with_latency_more_ranges_are_listed_at_a_time(tmp_path: Path) -> None:
    lookup = Lookup(None, lambda page: page)  # type: ignore[arg-type]
    lookup._page_seconds = 0.1
    assert lookup._wanted() == 40
    lookup._page_seconds = 0.001
    assert lookup._wanted() == 2
    assert LocalStore(str(tmp_path)).list("a", "b") is not None
