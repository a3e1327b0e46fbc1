"""What tests share: a small labelled set, CamVid where it is at hand, and one Ray for the whole session."""

import logging
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import ray

from tests.servers.proxy import Proxy
from tests.servers.radosgw import missing_programs, radosgw
from tests.servers.s3 import moto, rclone
from tests.servers.s3rver import install, s3rver
from unet.data.image import Array, encode_image

ROOT = Path(__file__).parent.parent

LONGEST = (
    "cluster/test_readme.py",
    "jobs/",
    "cluster/test_cluster.py",
    "runtime/",
    "train/test_ranks.py",
    "model/test_predictor.py",
    "train/",
)
"""What takes longest: each test begins processes, or trains."""

SERVERS = ["moto", "rclone", "s3rver", pytest.param("radosgw", marks=pytest.mark.slow)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: else the last of them runs in one process, and the others wait."""

    def place(item: pytest.Item) -> int:
        return next((at for at, name in enumerate(LONGEST) if item.nodeid.startswith(f"tests/{name}")), len(LONGEST))

    items.sort(key=place)


def make_pair(seed: int, size: tuple[int, int] = (40, 56)) -> tuple[Array, Array]:
    """A bright box (class 1) on a dark ground (class 0): image HWC uint8, mask HW uint8."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    top, left = rng.integers(2, size[0] - 20), rng.integers(2, size[1] - 20)
    mask[top : top + 16, left : left + 18] = 1
    image = rng.integers(0, 100, (*size, 3)).astype(np.uint8)
    image[mask == 1] += 120
    return image, mask


def write_pair(folder: Path, name: str, image: Array, mask: Array) -> None:
    """Writes images/NAME.png and masks/NAME.png."""
    for kind, array in (("images", image), ("masks", mask)):
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(array))


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """A labelled set of 12 training and 5 validation pairs, with its label file classes.csv."""
    return write_boxes(tmp_path / "boxes")


def write_boxes(folder: Path) -> Path:
    """The same set wherever it is written."""
    for part, first, count in (("train", 0, 12), ("val", 100, 5)):
        for seed in range(first, first + count):
            write_pair(folder / part, f"{seed:03}", *make_pair(seed))
    (folder / "classes.csv").write_text("index,name,red,green,blue\n0,ground,0,0,0\n1,box,255,0,0\n")
    return folder


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The CamVid set beside the checkout."""
    folder = Path(os.environ.get("CAMVID", ROOT.parent / "shared" / "camvid"))
    if not folder.is_dir():
        pytest.skip(f"no CamVid in {folder}; CAMVID names another folder")
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A local S3 server, as the AWS environment of this process and of those it starts; yields its URL."""
    with moto() as url:
        yield url


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between the S3 server and this process, and those that it starts."""
    with Proxy(s3) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between
        between.release.set()


@pytest.fixture
def bucket(s3: str) -> str:
    """The URI of a fresh bucket."""
    return new_bucket(s3)


def new_bucket(url: str) -> str:
    """Make a bucket on the server of the AWS environment, whose URL is this; return its URI."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    session = boto3.Session()  # that of boto3.client keeps the credentials of the first server
    session.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def radosgw_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The AWS environment of a server of Ceph."""
    if missing := missing_programs():
        pytest.skip(f"no {', '.join(missing)}; Debian has them in ceph-common, ceph-mon, ceph-osd and radosgw")
    environment: dict[str, str] = {}
    with radosgw(tmp_path_factory.mktemp("ceph"), environment):
        yield environment


@pytest.fixture(scope="session")
def rclone_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The AWS environment of a server of rclone."""
    environment: dict[str, str] = {}
    with rclone(tmp_path_factory.mktemp("rclone"), environment=environment):
        yield environment


@pytest.fixture(scope="session")
def s3rver_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The AWS environment of a server of s3rver."""
    try:
        program = install()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm cannot install s3rver ({type(error).__name__}); it needs npm, and once the network")
    environment: dict[str, str] = {}
    with s3rver(program, tmp_path_factory.mktemp("s3rver"), environment):
        yield environment


@pytest.fixture
def bucket_of(request: pytest.FixtureRequest, s3: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a bucket on a server by its name, of SERVERS, to which the environment leads from then on."""

    def make(server: str) -> str:
        if server != "moto":
            for name, value in request.getfixturevalue(f"{server}_environment").items():
                monkeypatch.setenv(name, value)
        return new_bucket(os.environ["AWS_ENDPOINT_URL"])

    return make


@pytest.fixture(scope="session")
def one_ray(s3: str) -> Iterator[None]:
    """Ray, started once for all tests that need it; its workers inherit the S3 server of the tests."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # how soon the end of a worker is seen
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
