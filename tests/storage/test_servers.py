"""Servers that are not AWS: each can do what the table of jobs/README.md says, and some promises hold on all."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.conftest import ROOT, SERVERS
from tests.storage.test_store import ODD_KEYS, keys
from unet.storage.faults import Changed, StorageError, Vanished
from unet.storage.s3 import PART_BYTES
from unet.storage.s3_client import client
from unet.storage.store import Store, open_store

Check = Callable[[Store, str, Path], bool]

NAMES = ["a b.png", "a-/b.png", "a.png", "a/b-/c.png", "a/b.png", "b.png", "ä/猫.png"]
"""In order; that of folders one after another is another."""

CHECKS: dict[str, Check] = {}
"""By the beginning of a row of the table: whether the server can. They are given a store, its bucket and a folder."""


def row(title: str) -> Callable[[Check], Check]:
    return lambda check: CHECKS.setdefault(title, check)


def refuses(error: type[Exception], act: Callable[[], object]) -> bool:
    """Return whether `act` raises an error."""
    try:
        act()
    except error:
        return True
    return False


@row("`If-None-Match` in a write")
def _(store: Store, bucket: str, folder: Path) -> bool:
    store.put("a", b"1")
    return refuses(Changed, lambda: store.put("a", b"2", expected_etag=""))


@row("`If-Match` in a write")
def _(store: Store, bucket: str, folder: Path) -> bool:
    etag = store.put("a", b"1")
    return refuses(StorageError, lambda: store.put("a", b"2", expected_etag="0" * 32)) and bool(
        store.put("a", b"3", expected_etag=etag)
    )


@row("`If-Match` in a read")
def _(store: Store, bucket: str, folder: Path) -> bool:
    store.put("a", b"1")
    return refuses(ClientError, lambda: client().get_object(Bucket=bucket, Key="p/a", IfMatch='"0"'))


@row("keeps the CRC-32")
def _(store: Store, bucket: str, folder: Path) -> bool:
    store.put("a", b"1")
    return "ChecksumCRC32" in client().get_object(Bucket=bucket, Key="p/a", ChecksumMode="ENABLED")


@row("refuses a write with a wrong CRC-32")
def _(store: Store, bucket: str, folder: Path) -> bool:
    return refuses(
        ClientError,
        lambda: client().put_object(
            Bucket=bucket, Key="p/a", Body=b"12", ChecksumAlgorithm="CRC32", ChecksumCRC32="AAAAAA=="
        ),
    )


@row("any legal key")
def _(store: Store, bucket: str, folder: Path) -> bool:
    store = open_store(store.uri, retry_seconds=0)
    for key in ODD_KEYS:
        with suppress(StorageError):
            store.put(key, b"")
    return set(keys(store)) == set(ODD_KEYS)


@row("lists in order of key")
def _(store: Store, bucket: str, folder: Path) -> bool:
    for name in NAMES:
        store.put(name, b"")
    assert sorted(keys(store)) == NAMES
    return keys(store) == NAMES


@row("lists from behind a key on")
def _(store: Store, bucket: str, folder: Path) -> bool:
    for name in NAMES:
        store.put(name, b"")
    return sorted(item.key for page in store.list("a.png") for item in page) == NAMES[3:]


@row("lists in pages")
def _(store: Store, bucket: str, folder: Path) -> bool:
    for name in ("a", "b", "c"):
        store.put(name, b"")
    with suppress(ClientError):
        token = client().list_objects_v2(Bucket=bucket, MaxKeys=2)["NextContinuationToken"]
        return client().list_objects_v2(Bucket=bucket, MaxKeys=2, ContinuationToken=token)["KeyCount"] == 1
    return False


@row("takes a file in parts")
def _(store: Store, bucket: str, folder: Path) -> bool:
    (folder / "large").write_bytes(bytes(PART_BYTES) + b"end")
    store.put_file("a", folder / "large")
    return store.get("a") == (folder / "large").read_bytes()


@row("refuses a wrong secret")
def _(store: Store, bucket: str, folder: Path) -> bool:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        return refuses(StorageError, lambda: store.put("a", b"1"))


@row("keeps versions")
def _(store: Store, bucket: str, folder: Path) -> bool:
    return not refuses(
        ClientError,
        lambda: client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}),
    )


@row("tells what is archived")
def _(store: Store, bucket: str, folder: Path) -> bool:
    with suppress(ClientError):
        client().put_object(Bucket=bucket, Key="p/a", StorageClass="GLACIER")
    return any(item.storage_class == "GLACIER" for page in store.list() for item in page)


@row("tells what has been restored")
def _(store: Store, bucket: str, folder: Path) -> bool:
    with suppress(ClientError):
        client().put_object(Bucket=bucket, Key="p/a", StorageClass="GLACIER")
        client().restore_object(Bucket=bucket, Key="p/a", RestoreRequest={"Days": 1})
        listed = client().list_objects_v2(Bucket=bucket, OptionalObjectAttributes=["RestoreStatus"])
        return any("RestoreStatus" in item for item in listed.get("Contents", ()))
    return False


def table() -> dict[str, dict[str, str]]:
    """Return the cells of the table in jobs/README.md, by row and server."""
    page = (ROOT / "jobs" / "README.md").read_text()
    lines = page[page.index("| | moto |") :].split("\n\n")[0].splitlines()
    heading, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return {cells[0]: dict(zip(heading[1:], cells[1:], strict=True)) for cells in rows}


def test_the_table_has_the_rows_that_are_tried() -> None:
    assert [title for title in CHECKS if not any(found.startswith(title) for found in table())] == []
    assert len(table()) == len(CHECKS)


@pytest.mark.parametrize("title", CHECKS)
@pytest.mark.parametrize("server", SERVERS)
def test_a_server_can_do_what_the_page_says(
    server: str, title: str, bucket_of: Callable[[str], str], tmp_path: Path
) -> None:
    bucket = bucket_of(server)
    cells = next(cells for found, cells in table().items() if found.startswith(title))
    cell = next(cell for name, cell in cells.items() if name.startswith(server))
    can = CHECKS[title](open_store(f"{bucket}/p"), bucket.removeprefix("s3://"), tmp_path)
    assert cell.split(":")[0] == ("yes" if can else "no")


@pytest.mark.parametrize("server", SERVERS)
def test_what_is_put_is_listed_read_and_deleted_on_every_server(server: str, bucket_of: Callable[[str], str]) -> None:
    store = open_store(f"{bucket_of(server)}/some place")
    etags = {name: store.put(name, name.encode(), metadata={"model": "1"}) for name in NAMES}
    assert {item.key: item.etag for page in store.list() for item in page} == etags
    assert all(store.get(name, etags[name]) == name.encode() for name in NAMES)
    assert store.head("a.png") == next(item for page in store.list() for item in page if item.key == "a.png")
    store.put("a.png", b"another")
    with pytest.raises(Changed):
        store.get("a.png", etags["a.png"])
    store.delete([*NAMES, "not there"])
    assert keys(store) == []
    for ask in (store.get, store.head):
        with pytest.raises(Vanished):
            ask("a.png")


def test_a_range_of_keys_is_refused_where_the_server_keeps_no_order(bucket_of: Callable[[str], str]) -> None:
    store = open_store(bucket_of("s3rver"))
    for name in NAMES:
        store.put(name, b"")
    assert sorted(keys(store)) == NAMES
    with pytest.raises(StorageError, match="is listed out of order; run it again with --list-workers 1"):
        list(store.list_tables(until=NAMES[-1]))
    assert sorted(item.key for page in store.list(until="a/b.png") for item in page) == NAMES[:5]
