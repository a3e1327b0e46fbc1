"""Storage: the same promises of a local folder and of a bucket, and what a bucket alone can do wrong."""

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from tests.servers.proxy import Action, Proxy
from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import Changed, Denied, Full, NoSuchFolder, StorageError, Unreachable, Vanished
from unet.storage.objects import ObjectInfo, join_uri
from unet.storage.s3 import BODY_ATTEMPTS, PART_BYTES
from unet.storage.store import Store, check_writable, list_files, open_store, read

ODD_KEYS = [
    "a//b", "/a", "../a", "a/../b", "a/./b", "./a", "..", "//", "folder/", "a b", "a+b", "a%b", "a%2Fb", "a%2", "a#b",
    "a?b=c", "a&b<c>", "ä/ö.jpg", "a\u0308", "猫🐈", "a\\b", "a:b", "s3://b/a", '"a"', "a=b;c,d@e!f$g'h(i)*", "~a",
    "a\tb",
]  # fmt: skip
"""Legal keys of a bucket, each another object."""


@pytest.fixture(params=["folder", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty folder: a local one, or a prefix of a bucket."""
    if request.param == "folder":
        (tmp_path / "some place").mkdir()
        return str(tmp_path / "some place")
    return f"{request.getfixturevalue('bucket')}/some place"


def listed(store: Store) -> list[ObjectInfo]:
    return [one for page in store.list() for one in page]


def keys(store: Store) -> list[str]:
    return [one.key for one in listed(store)]


# Promises of both.


def test_what_is_put_is_listed_described_and_read_back(folder: str) -> None:
    store = open_store(folder)
    etag = store.put("b/c.jpg", b"bytes", metadata={"model": "1"})
    assert listed(store) == [store.head("b/c.jpg")] == [ObjectInfo("b/c.jpg", 5, etag)]
    assert store.get("b/c.jpg") == store.get("b/c.jpg", etag) == b"bytes"


def test_a_listing_is_in_order_of_key_and_shows_hidden_files(folder: str) -> None:
    names = [".hidden", "B", "b-", "b.c", "b/.hidden/x", "b/c", "b0", "ä"]
    store = open_store(folder)
    for name in reversed(names):
        store.put(name, b"")
    assert keys(store) == names
    assert list_files(folder) == [name for name in names if "hidden" not in name]


def test_only_what_lies_below_the_folder_is_listed(folder: str) -> None:
    for uri in (folder, f"{folder}-2", f"{folder}/below"):
        store.write(join_uri(uri, "x"), b"")
    assert keys(open_store(folder)) == ["below/x", "x"]
    assert keys(open_store(f"{folder}/below")) == ["x"]
    assert keys(open_store(f"{folder}/none")) == store.list_files(f"{folder}/none") == []


def test_an_object_that_was_replaced_is_not_taken_for_the_one_listed(folder: str) -> None:
    store = open_store(folder)
    before = store.put("a", b"first")
    assert store.put("a", b"other") != before
    with pytest.raises(Changed, match="some place/a: is no longer what was listed"):
        store.get("a", before)
    assert store.get("a") == b"other"


def test_an_object_that_is_gone_has_vanished(folder: str) -> None:
    store = open_store(folder)
    etag = store.put("a", b"first")
    store.put("b", b"")
    store.delete(["a", "never/there"])
    for key in ("a", "never/there", "b/below a file"):
        with pytest.raises(Vanished) as caught:
            store.get(key, etag)
        assert caught.value.strerror
        with pytest.raises(Vanished):
            store.head(key)
    assert keys(store) == ["b"]


def test_a_store_and_its_errors_travel_between_processes(folder: str) -> None:
    store = open_store(folder)
    store.put("a", b"first")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"first"
    with pytest.raises(Vanished) as caught:
        store.get("b")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is Vanished
    assert (str(again), again.strerror) == (str(caught.value), caught.value.strerror)


def test_a_large_file_is_put_in_parts(folder: str, tmp_path: Path) -> None:
    data = os.urandom(9 << 20)
    (tmp_path / "large").write_bytes(data)
    store = open_store(folder)
    store.put_file("x/large", tmp_path / "large")
    one = store.head("x/large")
    assert one.size == len(data)
    assert store.get("x/large", one.etag) == data


@pytest.mark.parametrize("megabytes", [1, 9])
def test_a_file_is_put_though_a_request_fails(s3: str, bucket: str, tmp_path: Path, megabytes: int) -> None:
    data = os.urandom(megabytes << 20)
    (tmp_path / "file").write_bytes(data)
    with Proxy(s3) as proxy, pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.add(verb="PUT", nth=range(1), action="503")
        store = open_store(bucket)
        store.put_file("x/file", tmp_path / "file")
        assert store.get("x/file") == data


def test_a_refused_key_is_not_put(folder: str) -> None:
    store = open_store(folder)
    for key in ("", "é" * 1020):
        assert store.key_error(key)
        with pytest.raises(StorageError) as caught:
            store.put(key, b"")
        assert caught.value.strerror == store.key_error(key)
    assert not keys(store)
    assert store.key_error("a.jpg/b.png") is None


def test_files_are_read_and_written_by_uri(folder: str) -> None:
    uri = join_uri(folder, "model/model.json")
    assert not store.exists(uri)
    store.write(uri, b"{}")
    assert store.exists(uri)
    assert store.exists(join_uri(folder, "model"))
    assert not store.exists(join_uri(folder, "mod"))
    assert store.read(uri) == b"{}"
    with pytest.raises(OSError, match=r"no\.json: ") as caught:
        store.read(join_uri(folder, "no.json"))
    assert caught.value.strerror


def test_a_folder_is_checked_without_leaving_anything(folder: str) -> None:
    store.check_readable(folder, "--input")
    store.check_writable(folder, "--output")
    assert not keys(open_store(folder))


def test_a_folder_contains_itself_and_what_lies_below(folder: str) -> None:
    for inner in (folder, f"{folder}/", f"{folder}/a", f"{folder}/a/b"):
        assert store.contains(open_store(folder), open_store(inner))
    for other in (f"{folder}-2", folder.rpartition("/")[0], "s3://other/some place", "/elsewhere"):
        assert not store.contains(open_store(folder), open_store(other))


# Promises of a local folder.


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/etc/x", "..", "a/..", "a//b", "a/", "./a", "a/.", "a\0b", "x" * 256]
)
def test_no_key_names_a_path_outside_the_folder_or_the_file_of_another(key: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"kept")
    store = open_store(str(tmp_path / "folder"))
    for act in (lambda: store.put(key, b"lost"), lambda: store.get(key), lambda: store.delete([key])):
        with pytest.raises(StorageError):
            act()
    assert [file.name for file in tmp_path.rglob("*")] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"kept"


def test_a_file_being_written_is_not_listed_and_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ".unet-0123.part").write_bytes(b"half")
    (tmp_path / "taken").mkdir()
    store = open_store(str(tmp_path))
    with pytest.raises(StorageError, match="taken: "):
        store.put("taken", b"")
    assert not keys(store)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is sent to the disk, and when files get their names."""
    happened: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        happened.append("folder" if os.path.isdir(path) else f"{os.path.getsize(path)} bytes")

    def record_replace(source: str, target: str) -> None:
        replace(source, target)
        happened.append("name")

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return happened


def test_a_file_is_on_the_disk_before_its_name_so_that_a_power_cut_leaves_no_empty_one(
    tmp_path: Path, disk: list[str]
) -> None:
    (tmp_path / "file").write_bytes(b"whole")
    store = open_store(str(tmp_path / "folder"))
    store.put("a", b"whole")
    store.put_file("b/c", tmp_path / "file")
    assert disk == 2 * ["5 bytes", "name", "folder"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_disk_that_takes_no_file_is_an_error_and_one_that_knows_no_folders_is_not(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}") == (what == "folder"):
            raise OSError(errno.ENOSPC if what == "file" else errno.EINVAL, "as the test wishes")

    monkeypatch.setattr(os, "fsync", fail)
    store = open_store(str(tmp_path))
    if what == "file":
        with pytest.raises(Full):
            store.put("a", b"whole")
        assert not list(tmp_path.iterdir())
    else:
        assert store.get("a", store.put("a", b"whole")) == b"whole"


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a").write_bytes(b"")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/circle").symlink_to(tmp_path / "set")
    (tmp_path / "set/broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "set/itself").symlink_to(tmp_path / "set/itself")
    assert keys(open_store(str(tmp_path / "set"))) == ["link/a"]


def test_a_link_does_not_hide_that_one_folder_contains_another(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert store.contains(open_store(str(tmp_path / "set")), open_store(str(tmp_path / "link/a")))


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_missing_local_folder_cannot_be_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RequestError, match=rf"--input .*{name}: cannot be read \(there is no such folder\)"):
        store.check_readable(str(tmp_path / name), "--input")


@pytest.mark.parametrize("uri", ["gs://bucket/a", "file:///a", "s3://", "s3:///a"])
def test_a_uri_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(RequestError, match=uri):
        open_store(uri)


# Promises of a bucket.


@pytest.mark.parametrize("prefix", ["", "/p", "/p/", "/ä +%/p"])
def test_every_legal_key_names_its_own_object(bucket: str, prefix: str) -> None:
    store = open_store(bucket + prefix)
    etags = {key: store.put(key, key.encode()) for key in ODD_KEYS}
    assert {one.key: one.etag for one in listed(store)} == etags
    assert all(store.get(key, etags[key]) == key.encode() for key in ODD_KEYS)
    assert all(store.head(key).size == len(key.encode()) for key in ODD_KEYS)
    assert all(read(join_uri(bucket + prefix, key)) == key.encode() for key in ODD_KEYS)
    store.delete(ODD_KEYS)
    assert not keys(store)


def test_a_listing_of_many_pages_outlives_a_failing_and_an_empty_one(
    bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "100")
    store, names = open_store(f"{bucket}/p"), [f"{place:05}" for place in range(300)]
    for name in names:
        store.put(name, b"")
    proxy.requests.clear()
    proxy.add(verb="GET", path="*list-type=2*", nth=range(1, 2), action="503")
    proxy.add(verb="GET", path="*list-type=2*", nth=range(1, 2), action="reset")
    proxy.add(verb="GET", path="*list-type=2*", nth=range(2), action="empty_page")
    assert keys(store) == names
    assert len(proxy.requests) == 3 + 4


def test_many_objects_are_deleted_at_once(bucket: str, proxy: Proxy) -> None:
    store = open_store(f"{bucket}/p")
    store.put("1700", b"")
    store.delete(str(place) for place in range(2001))
    assert [verb for verb, _ in proxy.requests] == ["PUT"] + 3 * ["POST"]
    assert not keys(store)


def test_a_listing_that_breaks_off_raises(bucket: str, proxy: Proxy) -> None:
    open_store(bucket).put("a", b"")
    proxy.add(verb="GET", path="*list-type=2*", action="cut")
    with pytest.raises(StorageError, match=r"^s3://bucket-\w+: "):
        keys(open_store(bucket, retry_seconds=2))
    assert len(proxy.requests) > 1 + 2


@pytest.mark.parametrize("action", ["cut", "flip"])
def test_a_body_cut_short_or_altered_is_asked_for_again_and_never_returned(
    action: Action, bucket: str, proxy: Proxy
) -> None:
    store = open_store(bucket)
    etag = store.put("a", b"0123456789" * 1000)
    proxy.add(verb="GET", path="*/a", nth=range(2), action=action)
    assert store.get("a", etag) == b"0123456789" * 1000
    proxy.add(verb="GET", path="*/a", action=action)
    with pytest.raises(StorageError, match=rf"/a: came cut short or altered .*, {BODY_ATTEMPTS} times"):
        store.get("a")
    assert len(proxy.requests) == 1 + 3 + BODY_ATTEMPTS


def test_a_write_that_fails_on_its_way_is_sent_again(bucket: str, proxy: Proxy) -> None:
    proxy.add(verb="PUT", nth=range(1), action="500")
    proxy.add(verb="PUT", nth=range(1), action="reset")
    etag = open_store(bucket).put("a", b"whole")
    assert open_store(bucket).get("a", etag) == b"whole"
    assert [verb for verb, _ in proxy.requests] == ["PUT", "PUT", "PUT", "GET"]


def test_promise_09_a_large_file_is_uploaded_though_a_fifth_of_the_requests_fails(
    bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    data = os.urandom(40 << 20)
    (tmp_path / "file").write_bytes(data)
    proxy.add(verb="PUT", nth=range(4, 1000, 5), action="503")
    open_store(bucket, retry_seconds=2).put_file("report.parquet", tmp_path / "file")
    parts = len(data) / PART_BYTES
    assert [verb for verb, _ in proxy.requests].count("PUT") <= parts * 5 / 4
    assert len(proxy.requests) <= parts * 5 / 4 + 2  # an upload is begun and completed
    assert open_store(bucket).get("report.parquet") == data


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of two parts."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(PART_BYTES + 1))
    return path


def test_an_upload_is_complete_though_the_answer_that_says_so_is_lost(bucket: str, proxy: Proxy, large: Path) -> None:
    proxy.add(verb="POST", path="*uploadId=*", nth=range(1), action="cut")
    proxy.add(verb="POST", path="*uploadId=*", action="no_upload")  # what S3 says of an upload that is complete
    open_store(bucket).put_file("a", large)
    assert open_store(bucket).get("a") == large.read_bytes()
    with pytest.raises(Vanished):
        open_store(bucket).put_file("b", large)


@pytest.mark.parametrize("action", ["503", "denied"])
def test_an_upload_that_fails_leaves_nothing(action: Action, bucket: str, proxy: Proxy, large: Path, s3: str) -> None:
    proxy.add(verb="PUT", path="*partNumber=2*", action=action)
    with pytest.raises(Unreachable if action == "503" else Denied, match=r"/a: as the test wishes"):
        open_store(bucket, retry_seconds=0).put_file("a", large)
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket.removeprefix("s3://"))
    assert not keys(open_store(bucket))


@pytest.mark.parametrize("action", ["500", "503", "reset"])
def test_a_read_that_fails_on_its_way_is_sent_again(action: Action, bucket: str, proxy: Proxy) -> None:
    open_store(bucket).put("a", b"whole")
    proxy.add(verb="GET", nth=range(2), action=action)
    assert open_store(bucket).get("a") == b"whole"
    assert [verb for verb, _ in proxy.requests] == ["PUT", "GET", "GET", "GET"]


def test_a_missing_bucket_is_named(s3: str) -> None:
    for check, flag in ((store.check_readable, "--input"), (store.check_writable, "--output")):
        with pytest.raises(RequestError, match=rf"{flag} s3://no-bucket/p: .*no such bucket.*; create it, or correct"):
            check("s3://no-bucket/p", flag)
    with pytest.raises(NoSuchFolder):
        keys(open_store("s3://no-bucket"))
    assert not store.exists("s3://no-bucket")
    with pytest.raises(RequestError, match="Invalid bucket name"):
        store.check_readable("s3://no bucket", "--input")


def test_refused_credentials_are_one_message_without_the_secret(bucket: str, proxy: Proxy) -> None:
    proxy.add(action="403")
    store = open_store(bucket)
    for act in (lambda: store.get("a"), lambda: store.put("a", b""), lambda: store.delete(["a"]), lambda: keys(store)):
        with pytest.raises(Denied) as caught:
            act()
        assert "as the test wishes (ExpiredToken)" in str(caught.value)
        assert "secret" not in str(caught.value)
    with pytest.raises(RequestError, match=r"--output .*; check the AWS credentials"):
        check_writable(bucket, "--output")


def test_missing_credentials_are_said_to_be_missing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(RequestError, match=r"no usable AWS credentials .*; check the AWS credentials"):
        store.check_readable(bucket, "--input")


def test_a_malformed_secret_is_not_quoted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canary\nnewline")
    with pytest.raises(StorageError) as caught:
        open_store(bucket).get("a")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid"])
@pytest.mark.parametrize("check", [store.check_readable, check_writable])
def test_a_server_that_cannot_be_reached_may_be_mistyped_and_may_be_away(
    check: Callable[[str, str], None], url: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CHECK_SECONDS", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(Unreachable, match=rf"^--flag {bucket}: .*no answer from .*; check .*AWS_ENDPOINT_URL$"):
        check(bucket, "--flag")


def test_an_archived_object_does_not_look_like_a_refused_credential(bucket: str, s3: str) -> None:
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="a", Body=b"", StorageClass="GLACIER")
    store = open_store(bucket)
    assert listed(store)[0].storage_class == store.head("a").storage_class == "GLACIER"
    with pytest.raises(StorageError, match="InvalidObjectState") as caught:
        store.get("a")
    assert not isinstance(caught.value, Denied)
