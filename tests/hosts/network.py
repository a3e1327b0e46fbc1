"""Hosts on one machine: a Ray cluster whose nodes share neither network addresses nor temporary disks.

Each host has namespaces of its own: a network with an address, joined to the others by a bridge; mounts with an empty
/tmp; and processes, which end with it. The bridge's address is this process: the S3 server and whoever submits jobs.
Needs root and iproute2.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.servers.proxy import Proxy
from tests.servers.s3 import moto

RAY = str(Path(sys.executable).with_name("ray"))
NET = "10.231.17"
HERE = f"{NET}.1"
GCS, DASHBOARD, CLIENT = 6379, 8265, 10001

PRIVATE_TMP = f"""
set -e
kept=$(mktemp -d /run/unet-XXXX)
mount --bind {sys.prefix} $kept
mount -t tmpfs tmpfs /tmp
mkdir -p {sys.prefix}
mount --move $kept {sys.prefix}
rmdir $kept
touch /tmp/ready
exec sleep 100000
"""
"""What the first process of a host does. Python may itself lie below /tmp."""

CGROUPS = Path("/sys/fs/cgroup")
PERIOD = 20_000
"""Microseconds in which a host with a share of a core has that share."""


@dataclass
class Host:
    """A namespace. `number` is the last part of its address."""

    number: int
    link: str
    """This end of its cable."""
    environment: dict[str, str]
    holder: "subprocess.Popen[bytes]"
    group: Path | None = None
    """The control group that limits it."""

    @property
    def first_process(self) -> int:
        """The host's process 1, as its number here."""
        while not (children := Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text()):
            time.sleep(0.01)
        return int(children)

    @property
    def address(self) -> str:
        return f"{NET}.{self.number}"

    def run(self, *command: str, timeout: float = 240) -> "subprocess.CompletedProcess[str]":
        """Runs `command` on this host."""
        inside = ["nsenter", f"--target={self.first_process}", "--net", "--mount", "--pid", "--wd=/"]
        if self.group is not None:
            inside = ["sh", "-c", f'echo 0 > {self.group}/cgroup.procs; exec "$@"', "sh", *inside]
        return subprocess.run(
            [*inside, *command], env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    @property
    def disk(self) -> Path:
        """Its temporary disk, seen from here."""
        return Path("/proc", str(self.first_process), "root", "tmp")

    def kill(self) -> None:
        """The host loses power."""
        self.run("sh", "-c", "kill -9 -1")

    def cut(self) -> None:
        """Pulls its cable out."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Puts its cable in again."""
        _ip("link", "set", self.link, "up")


@dataclass
class Hosts:
    """A cluster being put together. `environment`: of all its processes and of who submits jobs."""

    environment: dict[str, str]
    bridge: str
    hosts: list[Host] = field(default_factory=list)
    head: Host | None = None

    @property
    def canary(self) -> str:
        """A secret that no file may hold."""
        return self.environment["AWS_SECRET_ACCESS_KEY"]

    @property
    def dashboard(self) -> str:
        assert self.head is not None
        return f"http://{self.head.address}:{DASHBOARD}"

    def add(self, *options: str, core: int | None = None, share: float = 1.0) -> Host:
        """One more host, which joins the cluster, or is its head where there is none. `core`: the only one it has;
        `share`: of the time of a core."""
        number = len(self.hosts) + 2
        own = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        holder = subprocess.Popen(["setpriv", "--pdeathsig=KILL", "unshare", *own, "sh", "-c", PRIVATE_TMP])
        host = Host(number, f"{self.bridge}{number}", self.environment, holder)
        self.hosts.append(host)
        _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", _network_of(holder))
        _ip("link", "set", host.link, "master", self.bridge, "up")
        while not (host.disk / "ready").exists():
            assert holder.poll() is None
            time.sleep(0.05)
        for words in ("link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up"):
            assert host.run("ip", *words.split()).returncode == 0
        if share < 1:
            host.group = _limited(host.link, share)
        self._start_ray(host, *options, core=core)
        self.head = self.head or host
        return host

    def rejoin(self, host: Host, *options: str) -> None:
        """A host that was cut off is back, and starts Ray again as its service manager would."""
        host.mend()
        host.run(RAY, "stop", "--force")
        self._start_ray(host, *options)

    def lose_head(self) -> None:
        """The head loses power; the next host to be added is the head of a new cluster."""
        assert self.head is not None
        self.head.kill()
        self.head = None

    def ray(self, *arguments: str, timeout: float = 580) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [RAY, *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(self, *entrypoint: str, options: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
        where = ("--address", self.dashboard, "--working-dir", ".")
        for _ in range(30):
            ended = self.ray("job", "submit", *where, *options, "--", "python", *entrypoint)
            # Both come up after `ray start`.
            if "No available agent" not in ended.stderr and "Failed to connect" not in ended.stderr:
                return ended
            time.sleep(0.5)
        raise TimeoutError(ended.stderr)

    def log(self, submission: str) -> str:
        return self.ray("job", "logs", "--address", self.dashboard, submission).stdout

    def logs(self) -> Iterator[bytes]:
        """Every log file of every host."""
        for host in self.hosts:
            for file in (host.disk / "ray").rglob("*"):
                with suppress(OSError):
                    if file.is_file():
                        yield file.read_bytes()

    def _start_ray(self, host: Host, *options: str, core: int | None = None) -> None:
        role = ["--head", f"--port={GCS}", f"--dashboard-port={DASHBOARD}", "--dashboard-host=0.0.0.0"]
        role += [f"--ray-client-server-port={CLIENT}"]
        if self.head is not None:
            role = [f"--address={self.head.address}:{GCS}"]
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        began = host.run(
            *pinned, RAY, "start", *role, f"--node-ip-address={host.address}", "--disable-usage-stats", *options
        )
        assert began.returncode == 0, began.stdout + began.stderr


@contextmanager
def network() -> Iterator[Hosts]:
    """A bridge without hosts yet; skips the test where that cannot be had."""
    if os.getuid() or not shutil.which("ip") or not shutil.which("nsenter"):
        pytest.skip("hosts of their own need root, iproute2 and util-linux")
    bridge = f"unet{secrets.token_hex(3)}"  # the kernel takes a moment to forget a name
    if subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel makes no bridge for the hosts")
    ours = ("RAY_", "AWS_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TMPDIR": "/tmp",
    }
    made = Hosts(environment, bridge)
    try:
        _ip("addr", "add", f"{HERE}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield made
    finally:
        for host in made.hosts:
            host.holder.kill()
            host.holder.wait()
        subprocess.run(["ip", "link", "del", bridge], check=False)
        for group in filter(None, (host.group for host in made.hosts)):
            while (group / "cgroup.procs").read_text():  # a host's processes end after its holder
                time.sleep(0.05)
            group.rmdir()


@contextmanager
def buckets(hosts: Hosts) -> Iterator[Proxy]:
    """The S3 server of the tests at the bridge's address, for `hosts`, behind a proxy."""
    with moto(HERE, hosts.environment) as url, Proxy(url, HERE) as proxy:
        hosts.environment["AWS_ENDPOINT_URL"] = proxy.url
        yield proxy


def _limited(name: str, share: float) -> Path:
    """A control group of either version whose processes have together a share of a core."""
    quota = int(share * PERIOD)
    if (CGROUPS / "cgroup.controllers").exists():
        group, limits = CGROUPS / name, {"cpu.max": f"{quota} {PERIOD}"}
    else:
        group, limits = CGROUPS / "cpu" / name, {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(quota)}
    group.mkdir()
    for file, value in limits.items():
        (group / file).write_text(value)
    return group


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _network_of(holder: "subprocess.Popen[bytes]") -> str:
    """The process that names the network of its own that `holder` is in, once it is."""
    ours = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{holder.pid}/ns/net") == ours:
        time.sleep(0.01)
    return str(holder.pid)
