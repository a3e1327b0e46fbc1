"""Ceph's S3 server: a monitor, an OSD that keeps everything in memory, and radosgw, from the packages of the system."""

import shutil
import subprocess
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.servers.ports import free_port, wait_for_port
from tests.servers.s3 import HERE, aws

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
"""What is needed of the packages ceph-common, ceph-mon, ceph-osd and radosgw."""

START_SECONDS = 120

CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v1:{here}:{mon_port}
auth cluster required = none
auth service required = none
auth client required = none
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
run dir = {folder}
log file = {folder}/$name.log
admin socket =
mon allow pool size one = true
mon max pg per osd = 1000
osd objectstore = memstore
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush update on start = false
osd class update on start = false
rgw frontends = beast endpoint={here}:{port}

[osd]
public addr = {here}
cluster addr = {here}
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def radosgw(folder: Path, environment: MutableMapping[str, str]) -> Iterator[str]:
    """Serve empty buckets, of which `folder` has the logs; yield the URL."""
    fsid, port, key, secret = str(uuid.uuid4()), free_port(), "ceph-key", "ceph-secret"
    (folder / "mon").mkdir()
    (folder / "osd").mkdir()
    values = {"fsid": fsid, "here": HERE, "mon_port": free_port(), "port": port, "folder": folder}
    (folder / "ceph.conf").write_text(CONFIGURATION.format(**values))
    with ExitStack() as stack:
        start = _Starter(folder, stack)
        start.run("ceph-mon", "--mkfs", "-i", "a", "--fsid", fsid)
        start.serve("ceph-mon", "-i", "a")
        start.run("ceph", "osd", "new", fsid)
        # By itself an OSD tries that once as it starts, and ends where the monitor is not ready to listen.
        start.run("ceph", "osd", "crush", "add", "osd.0", "1", "host=here", "root=default")
        start.run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", fsid)
        start.serve("ceph-osd", "-i", "0")
        start.serve("radosgw", "-n", "client.radosgw")
        names = ["--uid=tests", "--display-name=tests", f"--access-key={key}", f"--secret-key={secret}"]
        start.run("radosgw-admin", "user", "create", *names)
        wait_for_port(port, seconds=START_SECONDS)
        with aws(environment, f"http://{HERE}:{port}", key, secret):
            yield f"http://{HERE}:{port}"


class _Starter:
    """Starts programs of Ceph, and ends those that serve with `stack`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.options, self.stack = ["-c", str(folder / "ceph.conf")], stack

    def run(self, program: str, *arguments: str) -> None:
        """Run a program to its end, which waits for the servers that it needs."""
        command = [program, *self.options, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
        assert ended.returncode == 0, ended.stderr

    def serve(self, program: str, *arguments: str) -> None:
        log = subprocess.DEVNULL
        server = subprocess.Popen([program, "-f", *self.options, *arguments], stdout=log, stderr=log)
        self.stack.callback(server.wait)
        self.stack.callback(server.kill)
