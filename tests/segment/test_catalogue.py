"""What ledger and report say of a mask is what its pixels say, and is written anew only where something has changed."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.jobs.bench import LABELS, Bench, Rows, fill, save_model
from unet.data.image import Array
from unet.segment.compaction import compact
from unet.segment.ledger import Ledger
from unet.segment.ledger_part import COLUMNS
from unet.storage.store import open_store


def check_rows(bench: Bench, rows: Rows, values: Sequence[int], names: Sequence[str]) -> None:
    """Assert that rows say what masks and confidences do. `values`: of the classes, as masks hold them."""
    store = open_store(bench.masks)

    def read(key: str) -> Array:
        with Image.open(io.BytesIO(store.get(key))) as picture:
            return np.asarray(picture)

    for key, row in rows.items():
        mask, confidence = read(row["mask_key"]), read(f"_segment/confidence/{key}.png")
        assert (row["height"], row["width"], row["channels"]) == (*mask.shape, 3)
        assert row["confidence"] == pytest.approx((confidence / 255).mean(), abs=1e-6)
        assert row["unsure"] == pytest.approx((confidence < 127.5).mean(), abs=1e-6)
        shares = {name: (mask == value).mean() for name, value in zip(names, values, strict=True)}
        assert row["shares"] == pytest.approx(shares, abs=1e-6)


def test_the_report_says_what_is_in_the_masks_also_in_those_that_are_unchanged(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.png"])
    check_rows(bench, bench.run(write="mask,confidence"), [0, 255], LABELS.names)
    open_store(bench.images).put("broken.png", b"no image")
    rows = bench.run(write="mask,confidence")
    broken = rows.pop("broken.png")
    assert (broken["status"], broken["height"], broken["shares"]) == ("failed", None, None)
    assert {row["status"] for row in rows.values()} == {"unchanged"}
    check_rows(bench, rows, [0, 255], LABELS.names)


@pytest.mark.slow
def test_the_catalogue_of_camvid_is_what_its_masks_hold(camvid: Path, tmp_path: Path) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    rows = bench.run(input=str(camvid / "train"), write="mask,confidence")
    assert len(rows) == 367
    check_rows(bench, rows, [0, 255], LABELS.names)


def recorded(ledger: Ledger, keys: Sequence[str], seed: int) -> pa.Table:
    """Rows `done` with shares of the ledger's classes."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(len(ledger.classes), 0.3), len(keys)).astype(np.float32)
    count = len(keys)
    columns = {
        "key": list(keys),
        "etag": rng.bytes(16 * count).hex(" ", 16).split(),
        "size": rng.integers(100_000, size=count),
    }
    columns |= {"status": ["done"] * count, "fingerprint": ["f" * 16] * count, "outputs": ["mask"] * count}
    columns |= {
        "mask_etag": rng.bytes(16 * count).hex(" ", 16).split(),
        "height": [360] * count,
        "width": [480] * count,
    }
    columns |= {"confidence": rng.random(count), "unsure": rng.random(count), "shares": shares.tolist()}
    return pa.table(columns).cast(pa.schema([COLUMNS.field(name) for name in columns]))


def bytes_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_a_run_that_changes_three_of_100_000_objects_writes_few_of_the_catalogues_bytes(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), classes=[f"class {number}" for number in range(12)])
    keys = [f"2026/{number:06}.jpg" for number in range(100_000)]
    ledger.append(recorded(ledger, keys, 0), 1)
    compact(ledger, 1)
    before = bytes_of(tmp_path)
    ledger.append(recorded(ledger, [keys[7], keys[50_000], keys[-1]], 1), 2)
    written = sum(bytes_of(tmp_path).values()) - sum(before.values())
    compact(ledger, 2)
    after = bytes_of(tmp_path)
    written += sum(size for name, size in after.items() if name not in before)
    assert written < 0.05 * sum(before.values())
    assert sum(len(table) for table in ledger.rows()) == 100_000


def test_files_of_the_ledger_have_a_column_for_each_class(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), classes=["road", "a.b"])
    ledger.append(pa.concat_tables([recorded(ledger, ["a", "b"], 0), _failed("c")], promote_options="default"), 1)
    rows = pq.read_table(tmp_path / next(iter(bytes_of(tmp_path)))).sort_by("key").to_pylist()
    assert sum(rows[0]["shares"].values()) == pytest.approx(1)
    assert list(rows[1]["shares"]) == ["road", "a.b"]
    assert rows[2]["shares"] is None
    (read,) = ledger.rows()
    assert read["shares"].to_pylist() == [list(rows[0]["shares"].values()), list(rows[1]["shares"].values()), None]


def test_shares_of_untouched_rows_outlive_a_run_with_other_classes(tmp_path: Path) -> None:
    shares = dict[str, dict[str, float]]()

    def run(fence: int, names: Sequence[str], keys: Sequence[str]) -> None:
        ledger = Ledger(str(tmp_path), classes=names)
        rows = recorded(ledger, keys, fence)
        given = rows["shares"].to_pylist()
        shares.update({key: dict(zip(names, row, strict=True)) for key, row in zip(keys, given, strict=True)})
        ledger.append(rows, fence)
        compact(ledger, fence)

    def read() -> dict[str, dict[str, float]]:
        query = f"SELECT key, shares FROM read_parquet('{tmp_path}/*.parquet', union_by_name=true)"
        rows = duckdb.execute(query).fetchall()
        return {key: {name: share for name, share in row.items() if share is not None} for key, row in rows if row}

    run(1, ["road", "sky"], ["a", "b", "c"])
    run(2, ["road", "car"], ["b"])
    assert read() == shares
    run(3, ["road", "sky"], ["c"])
    assert read() == shares
    (rows,) = (table.to_pylist() for table in Ledger(str(tmp_path), classes=["sky", "road"]).rows())
    assert rows[0]["shares"][:2] == [shares["a"]["sky"], shares["a"]["road"]]
    run(4, ["road", "car"], ["a", "c"])
    run(5, ["road", "car"], ["d"])
    assert read() == shares
    (part,) = tmp_path.glob("*.parquet")
    assert list(pq.read_table(part)["shares"][0].as_py()) == ["road", "car"]


def _failed(key: str) -> pa.Table:
    return pa.table({"key": [key], "status": ["failed"], "fingerprint": ["f"]})


def test_the_queries_of_the_page_find_keys_that_a_manifest_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "jobs" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.png", "c.png"])
    rows = bench.run()
    lowest, second, _ = sorted(rows.values(), key=lambda row: row["confidence"])
    bound = (lowest["confidence"] + second["confidence"]) / 2
    query = re.search(r"```sql\n(COPY .*?)```", page, re.DOTALL)
    assert query is not None
    duckdb.sql(query[1].replace("crack > 0.02", "box >= 0").replace("confidence < 0.6", f"confidence < {bound}"))
    assert list(bench.run(manifest="unsure.csv", force=True)) == [lowest["key"]]
    code = re.search(r"(rows = pandas.*\nrows\[.*\])", page)
    assert code is not None
    assignment, selection = code[1].replace('"crack"] > 0.02', '"box"] >= 0').splitlines()
    names = {"pandas": pandas}
    exec(assignment, names)
    assert set(eval(selection, names)["key"]) == set(rows)
