"""Manifests of every kind name what is segmented, and where they have etags, no object is asked for."""

import gzip
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from tests.jobs.bench import Bench, fill, save_model
from tests.servers.s3 import stub
from tests.servers.stub import BODY, ETAG, image_key
from unet.command_line import run
from unet.segment.job import segment
from unet.segment.manifest import Manifest
from unet.segment.settings import SegmentSettings
from unet.settings import RequestError
from unet.storage import store
from unet.storage.objects import LISTED, split_uri
from unet.storage.store import Store, open_store

KEYS = ["a.png", "b/ö +%.png", "c.png"]


@pytest.fixture
def bench(bucket: str) -> Bench:
    bench = Bench(bucket)
    save_model(bench.model)
    fill(bench.images, KEYS)
    return bench


def names(bench: Bench) -> tuple[str, str]:
    """The bucket, and the prefix of the images."""
    bucket, prefix = split_uri(bench.images)
    return bucket, f"{prefix}/"


def inventory(bench: Bench, kind: str) -> str:
    """Write an S3 Inventory of the whole bucket, in two files; return the URI of its manifest.json."""
    bucket, prefix = names(bench)
    rows = [
        {"bucket": bucket, "key": prefix + item.key, "size": item.size, "e_tag": item.etag, "storage_class": "STANDARD"}
        | {"is_latest": True, "is_delete_marker": False}
        for page in open_store(bench.images).list()
        for item in page
    ]
    rows.append(rows[0] | {"e_tag": "of-before", "is_latest": False})
    rows.append(rows[0] | {"key": f"{prefix}deleted.png", "is_delete_marker": True})
    rows.append(rows[0] | {"key": "elsewhere/d.png"})
    rows.reverse()
    files = []
    for number, part in enumerate((rows[:2], rows[2:])):
        key = f"inventory/data/{number}.{kind.lower()}"
        store.write(f"s3://{bucket}/{key}", encoded(pa.Table.from_pylist(part), kind))
        files.append({"key": key, "size": 1, "MD5checksum": ""})
    schema = "Bucket, Key, Size, ETag, StorageClass, IsLatest, IsDeleteMarker"
    content = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "fileFormat": kind,
        "fileSchema": schema if kind == "CSV" else "message s3.inventory {...}",
        "files": files,
    }
    store.write(f"s3://{bucket}/inventory/manifest.json", json.dumps(content).encode())
    return f"s3://{bucket}/inventory/manifest.json"


def encoded(table: pa.Table, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "CSV":
        lines = []
        for row in table.to_pylist():
            row["key"] = quote_plus(row["key"], safe="/")
            lines.append(
                ",".join(f'"{str(value).lower() if isinstance(value, bool) else value}"' for value in row.values())
            )
        return gzip.compress("\n".join(lines).encode())
    if kind == "Parquet":
        pq.write_table(table, buffer)
    else:
        pyarrow.orc.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["CSV", "Parquet", "ORC"])
def test_an_inventory_is_segmented_without_a_listing_or_a_head(
    bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = inventory(bench, kind)
    monkeypatch.setattr("unet.segment.lookup.Lookup.of_store", None)
    monkeypatch.setattr("unet.segment.manifest.head_objects", None)
    assert bench.statuses(manifest=manifest) == dict.fromkeys(KEYS, "done")
    assert bench.statuses(manifest=manifest) == dict.fromkeys(KEYS, "unchanged")
    monkeypatch.undo()
    assert bench.statuses() == dict.fromkeys(KEYS, "unchanged")


@pytest.mark.parametrize(
    "lines",
    [
        lambda bucket, prefix: ["key", *KEYS],
        lambda bucket, prefix: ["key", *(f"s3://{bucket}/{prefix}{key}" for key in KEYS), f"s3://{bucket}/other.png"],
        lambda bucket, prefix: [f"{bucket},{prefix}{quote_plus(key, safe='/')}" for key in KEYS],
        lambda bucket, prefix: ["Bucket,Key", *(f"{bucket},{prefix}{key}" for key in KEYS), f"{bucket},other.png"],
    ],
)
def test_keys_are_named_in_every_usual_way(
    bench: Bench, tmp_path: Path, lines: Callable[[str, str], list[str]]
) -> None:
    manifest = tmp_path / "keys.csv"
    manifest.write_text("\n".join(lines(*names(bench))))
    assert bench.statuses(manifest=str(manifest)) == dict.fromkeys(KEYS, "done")


@pytest.mark.parametrize(
    "lines", [["key", "s3://another/x/a.png"], ["bucket,key", "another,x/a.png"]], ids=["uris", "bucket and key"]
)
def test_a_manifest_of_another_bucket_is_refused(
    bench: Bench, tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "keys.csv"
    manifest.write_text("\n".join(lines))
    flags = ["--input", bench.images, "--output", bench.masks, "--model", bench.model, "--manifest", str(manifest)]
    assert run(segment, SegmentSettings, flags) == 2
    assert "keys.csv: names objects of the bucket another, not of --input" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["keys.parquet", "keys.csv"])
def test_sizes_and_etags_beside_keys_spare_the_requests(
    bench: Bench, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [item for page in open_store(bench.images).list() for item in page]
    table = pa.table(
        {"key": [i.key for i in there], "etag": [f'"{i.etag}"' for i in there], "size": [i.size for i in there]}
    )
    if name.endswith("csv"):
        lines = [
            "key,etag,size",
            *(f"{row['key']},{row['etag'].strip(chr(34))},{row['size']}" for row in table.to_pylist()),
        ]
        (tmp_path / name).write_text("\n".join(lines))
    else:
        pq.write_table(table, tmp_path / name)
    monkeypatch.setattr("unet.segment.manifest.head_objects", None)
    assert bench.statuses(manifest=str(tmp_path / name)) == dict.fromkeys(KEYS, "done")
    images = open_store(bench.images)
    images.put("a.png", images.get("c.png") + b"x")
    monkeypatch.undo()
    assert bench.statuses(manifest=str(tmp_path / name))["a.png"] == "unchanged"  # as the manifest has it
    assert bench.statuses()["a.png"] == "done"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.json", b"{}"),
        ("x.json", b"nothing"),
        ("x.parquet", b"PAR1"),
        ("x.csv", b"name\na\n"),
        ("x.csv", b"\xff\xfe\x00"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RequestError, match=f"--manifest .*{name}: is no CSV or Parquet file with a column key"):
        Manifest(str(tmp_path / name), "s3://b/images").check()


def test_a_manifest_that_names_nothing_is_named_and_says_nothing_of_the_input(bench: Bench, tmp_path: Path) -> None:
    manifest = tmp_path / "none.csv"
    manifest.write_text("key\n")
    with pytest.raises(RequestError, match=r"--manifest \S+none.csv: names no object of --input"):
        bench.run(manifest=str(manifest))
    assert bench.run(manifest=str(manifest), allow_empty=True) == {}
    manifest.write_text("key\na.png\n")
    with pytest.raises(RequestError, match="that --include and --exclude select"):
        bench.run(manifest=str(manifest), include=("b/*",))
    open_store(bench.images).delete(KEYS)
    with pytest.raises(RequestError, match="nothing is there"):
        bench.run()


@pytest.mark.slow
def test_an_inventory_of_ten_million_rows_is_read_at_200_000_a_second(tmp_path: Path) -> None:
    """The manifest alone, sorted, as pages: what is looked up after it is the ledger's matter."""
    rows = 10_000_000
    with stub(1):
        files = []
        for number, first in enumerate(range(rows - 1_000_000, -1, -1_000_000)):
            keys = pa.array([f"images/{image_key(place)}" for place in range(first, first + 1_000_000)])
            table = pa.table({"bucket": pa.repeat("stub", len(keys)), "key": keys})
            table = table.append_column("size", pa.repeat(len(BODY), len(keys)))
            table = table.append_column("e_tag", pa.repeat(ETAG, len(keys)))
            buffer = io.BytesIO()
            pq.write_table(table, buffer)
            store.write(f"s3://stub/inventory/{number}.parquet", buffer.getvalue())
            files.append({"key": f"inventory/{number}.parquet"})
        content = {"destinationBucket": "arn:aws:s3:::stub", "fileFormat": "Parquet", "fileSchema": "", "files": files}
        store.write("s3://stub/inventory/manifest.json", json.dumps(content).encode())
        began, listed, last = time.monotonic(), 0, ""
        images: Store = open_store("s3://stub/images")
        for page in Manifest("s3://stub/inventory/manifest.json", "s3://stub/images").pages(images, lambda key: True):
            assert page["key"][0].as_py() > last
            listed, last = listed + len(page), page["key"][-1].as_py()
    rate = listed / (time.monotonic() - began)
    print(f"{rate:,.0f} rows/s")
    assert listed == rows


@pytest.mark.slow
def test_keys_of_more_than_2_gib_are_pages_too(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "k" * 1_000_000
    keys = [pa.array([f"{long}{place}.png" for place in range(first, first + 750)]) for first in (0, 750, 1500)]
    tables = [pa.table([some, *(pa.nulls(750, field.type) for field in list(LISTED)[1:])], LISTED) for some in keys]
    monkeypatch.setattr(Manifest, "_tables", lambda self: iter(tables))
    seen = set[str]()

    def note(key: str) -> bool:
        seen.add(key[-8:])
        return False

    assert not list(Manifest("", "s3://b").pages(open_store("s3://b"), note))
    assert len(seen) == 2250
