"""The README's lines for a cluster on this machine work as they are printed, whatever is in the home folder.

They run in a network and with processes of their own: `ray start` finds its ports free, and `ray stop` stops no other.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOCAL_RAY = "python -c 'from unet.runtime.session import connect; connect(worker_output=False)'"
"""What `make demo` does to the home folder: a Ray that a job starts for itself leaves its token there."""


def printed_lines() -> list[str]:
    """Return the lines of the README's block with `ray start --head`, without comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (block,) = [block for block in blocks if re.search(r"^ray start --head\b", block, re.M)]
    return [line for line in (re.sub(r"(^|\s+)#.*", "", line) for line in block.splitlines()) if line]


@pytest.fixture
def own_machine() -> list[str]:
    """The command before one that sees neither the network nor the processes of this machine."""
    as_root = [] if os.getuid() == 0 else ["--map-root-user"]
    command = ["unshare", *as_root, "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("no unshare or no ip on this machine")
    if subprocess.run([*command, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a network of his own")
    return command


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty home folder, which has Ray's files too; its path is short, as sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="unet-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(own_machine: list[str], home: Path, *script: str) -> "subprocess.CompletedProcess[str]":
    """Run the lines one after another to the first that fails, the commands of this Python before others."""
    bash = [*own_machine, "bash", "-exc", "\n".join(("ip link set lo up", *script))]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(home), "RAY_TMPDIR": str(home)}
    return subprocess.run(bash, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)


def with_flags(line: str, number: int, boxes: Path, output: Path) -> str:
    """Return the line, with the flags of a tiny run if it trains."""
    if "jobs/train.py" not in line:
        return line
    places = f"--data {boxes} --classes {boxes / 'classes.csv'} --output {output} --name line-{number}"
    return f"{line} {places} --size 32 32 --width 8 --depth 1 --epochs 1 --steps-per-epoch 2 --batch-size 4"


AFTER_DEMO = (LOCAL_RAY, "test -s ~/.ray/auth_token")


@pytest.mark.parametrize(
    ("before", "left_out"),
    [
        pytest.param((), None, id="an empty home folder", marks=pytest.mark.slow),
        pytest.param(AFTER_DEMO, None, id="a token that a local Ray has left", marks=pytest.mark.slow),
        pytest.param(AFTER_DEMO, "ray job submit", id="the same, without Ray's own command"),
    ],
)
def test_the_lines_of_the_readme_train_on_a_cluster(
    before: tuple[str, ...], left_out: str | None, own_machine: list[str], home: Path, boxes: Path, tmp_path: Path
) -> None:
    printed = [line for line in printed_lines() if left_out is None or left_out not in line]
    script = [with_flags(line, number, boxes, tmp_path / "runs") for number, line in enumerate(printed)]
    ended = run(own_machine, home, *before, *script)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    trained = {f"line-{number}" for number, line in enumerate(printed) if "jobs/train.py" in line}
    assert len(trained) == (2 if left_out is None else 1)
    assert {path.parent.name for path in tmp_path.glob("runs/*/metrics.jsonl")} == trained


@pytest.mark.slow
def test_a_token_that_was_left_after_the_head_began_is_no_hindrance(own_machine: list[str], home: Path) -> None:
    code = home / "code"
    code.mkdir()
    (code / "job.py").write_text("print('submitted')")
    submit = f"python cluster/submit.py --working-dir {code} -- job.py"
    ended = run(own_machine, home, "ray start --head", "ray get-auth-token --generate > /dev/null", submit)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "submitted\n" in ended.stdout
