"""`unet submit` ends as the job ends, whatever becomes of its log, of an answer, or of the head."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cluster import submit
from tests.cluster.cluster import RAY, Cluster, ray_cluster
from tests.cluster.jobs_api import Api, Outcome, Submitted, served
from tests.conftest import ROOT
from tests.jobs.bench import Bench, fill, save_model
from tests.processes import command_line, processes_naming
from tests.servers.ports import free_port
from unet.segment.lease import acquire
from unet.segment.run_spec import LEASE_KEY

JOB = ["--", "jobs/segment.py", "--input", "s3://bucket/a b", "--output", "out"]
TOKEN = "0123456789abcdef" * 4
LINES = "".join(f"line {number}\n" for number in range(5))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Look at jobs often, and ship a small folder."""
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.05)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # taken back afterwards
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a token of whoever runs the tests is not sent
    for name in ("jobs/segment.py", ".git/config", ".env", "access.pem", "labels.csv", "large/video.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)


def run(api: Api, *options: str) -> int:
    with served(api):
        return submit.main(["--address", api.url, *options, *JOB])


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 130, 143])
def test_the_exit_code_is_the_drivers(code: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(Api(Outcome(code))) == code
    assert capfd.readouterr().out == LINES


def test_a_driver_that_a_signal_ends_and_one_that_is_lost_have_codes_too() -> None:
    assert run(Api(Outcome(-9))) == 137
    assert run(Api(Outcome(None, status="FAILED"))) == 1


def test_a_stopped_job_is_no_success() -> None:
    assert run(Api(Outcome(status="STOPPED"))) == 143


def test_code_travels_and_secrets_and_what_is_excluded_do_not() -> None:
    api = Api(Outcome())
    assert run(api, "--exclude", "large") == 0
    assert {name for name in api.shipped if not name.endswith("/")} == {"jobs/segment.py", "labels.csv"}
    (job,) = api.jobs.values()
    assert job.body["entrypoint"] == "python jobs/segment.py --input 's3://bucket/a b' --output out"
    assert "env_vars" not in job.body["runtime_env"]


def test_a_command_that_is_no_script_is_submitted_as_it_stands() -> None:
    assert submit.entrypoint_of(["unet", "segment", "--input", "a b"]) == "unet segment --input 'a b'"


def test_a_log_that_breaks_off_is_asked_for_again_and_no_line_comes_twice(capfd: pytest.CaptureFixture[str]) -> None:
    api = Api(Outcome(3, seconds=1.0))
    api.cut_logs = 3
    assert run(api) == 3
    assert api.cut_logs == 0
    assert capfd.readouterr().out == LINES


@pytest.mark.parametrize("closed", [False, True])
def test_a_log_that_cannot_be_printed_ends_nothing(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an encoding that lacks a letter of it, or as nobody reads it any more."""
    monkeypatch.setattr(Submitted, "log", "größe\n")
    reader, writer = os.pipe()
    if closed:
        os.close(reader)
    with open(writer, "w", encoding="ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        assert run(Api(Outcome(3))) == 3
        monkeypatch.undo()
        with suppress(BrokenPipeError):
            narrow.close()
    if not closed:
        assert os.read(reader, 99) == b"gr\\xf6\\xdfe\n"
        os.close(reader)


def test_the_last_lines_are_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    api = Api(Outcome(0, seconds=0.01))
    api.cut_logs = 5
    assert run(api) == 0
    assert capfd.readouterr().out == LINES


def test_a_job_whose_submission_is_not_answered_is_not_submitted_twice() -> None:
    api = Api(Outcome(3))
    api.lost_answers = 1
    assert run(api) == 3
    assert len(api.jobs) == 1


def test_a_cluster_that_is_away_for_a_while_is_waited_for() -> None:
    api = Api(Outcome(0))
    api.refusals = 5
    assert run(api) == 0


def test_a_job_that_the_cluster_forgets_is_lost_and_without_retries_a_failure() -> None:
    api = Api(Outcome(0, seconds=60))
    api.forgets_after = 3
    assert run(api) == 1


def test_a_job_that_the_cluster_forgets_is_submitted_again(capfd: pytest.CaptureFixture[str]) -> None:
    api = Api(Outcome(0, seconds=60, lines=600), Outcome(0))
    api.forgets_after = 8
    assert run(api, "--retries", "1", "--pause", "0.1") == 0
    assert capfd.readouterr().out.endswith(LINES)


def test_a_signal_while_a_lost_job_is_to_be_tried_again_stops_it(tmp_path: Path) -> None:
    api = Api(Outcome(0, seconds=60, lines=600))
    with served(api):
        command = [sys.executable, str(ROOT / "cluster" / "submit.py"), "--retries", "1", "--pause", "60"]
        command += ["--patience", "0.2", "--address", api.url, *JOB]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        api.refusals = 1 << 30
        assert any("is lost" in line for line in iter(process.stderr.readline, ""))
        api.refusals = 0
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        (job,) = api.jobs.values()
        assert job.stopped
    assert process.returncode == 143


class Dying:
    """An object in whose destructor a signal comes; Python drops whatever is raised there."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_comes_in_a_destructor_stops_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_log", lambda message: Dying() if "follows" in message else None)
    api = Api(Outcome(1), Outcome(0))
    assert run(api, "--retries", "1", "--pause", "1") == 143
    assert len(api.jobs) == 1


def test_no_cluster_is_exit_code_1_after_some_patience(capfd: pytest.CaptureFixture[str]) -> None:
    where = f"http://127.0.0.1:{free_port()}"
    assert submit.main(["--address", where, "--patience", "0.3", *JOB]) == 1
    assert "is lost: no answer from the cluster" in capfd.readouterr().err


def test_a_crash_is_tried_again_and_what_will_be_no_better_is_not() -> None:
    for codes, attempts in (
        ((1, 1, 0), 3),
        ((137, 0), 2),
        ((135, 0), 2),
        ((1, 1, 1, 1), 3),
        ((2,), 1),
        ((3,), 1),
        ((143,), 1),
    ):
        api = Api(*map(Outcome, codes))
        assert run(api, "--retries", "2", "--pause", "0") == codes[attempts - 1]
        assert len(api.jobs) == attempts


def test_an_output_that_another_run_holds_is_waited_for() -> None:
    api = Api(Outcome(4), Outcome(0))
    began = time.monotonic()
    assert run(api, "--retries", "1", "--pause", "60", "--pause-held", "1") == 0
    assert time.monotonic() - began > 1
    assert len(api.jobs) == 2


def test_a_folder_that_is_none_is_a_faulty_request(capfd: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--working-dir", "nowhere", *JOB]) == 2
    assert "--working-dir nowhere" in capfd.readouterr().err


def run_at_home(api: Api, home: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Submit the job in a process of its own, as Ray looks for a token once in each, with `home` as the home folder."""
    names = {"PATH", "LD_LIBRARY_PATH"} & os.environ.keys()
    with served(api):
        return subprocess.run(
            [sys.executable, str(ROOT / "cluster" / "submit.py"), "--address", api.url, *JOB],
            env={name: os.environ[name] for name in names} | {"HOME": str(home)} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


def write_token(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(TOKEN + "\n")
    return file


@pytest.mark.parametrize("place", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "home"])
def test_a_token_that_is_found_is_sent(place: str, tmp_path: Path) -> None:
    api = Api(Outcome(0))
    api.token = TOKEN
    environment = {}
    if place == "home":
        write_token(tmp_path / "home/.ray/auth_token")
    else:
        environment[place] = TOKEN if place == "RAY_AUTH_TOKEN" else str(write_token(tmp_path / "token"))
    ended = run_at_home(api, tmp_path / "home", **environment)
    assert (ended.returncode, ended.stdout) == (0, LINES), ended.stderr
    assert api.tokens == {TOKEN}
    assert TOKEN not in ended.stderr


def test_a_token_is_not_sent_where_ray_auth_mode_says_so(tmp_path: Path) -> None:
    write_token(tmp_path / "home/.ray/auth_token")
    api = Api(Outcome(0))
    assert run_at_home(api, tmp_path / "home", RAY_AUTH_MODE="disabled").returncode == 0
    assert api.tokens == {""}


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="missing"),
        pytest.param({"RAY_AUTH_MODE": "token"}, id="missing, with RAY_AUTH_MODE=token"),
        pytest.param({"RAY_AUTH_TOKEN": "wrong" + TOKEN}, id="wrong"),
        pytest.param({"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, id="no such file"),
    ],
)
def test_a_token_that_is_wrong_or_missing_is_one_line_and_exit_code_2(
    environment: dict[str, str], tmp_path: Path
) -> None:
    api = Api()
    api.token = TOKEN
    ended = run_at_home(api, tmp_path / "home", **environment)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "RAY_AUTH_TOKEN_PATH" in line
    assert TOKEN not in line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_job_and_waits_for_its_end(number: int, code: int, tmp_path: Path) -> None:
    api = Api(Outcome(0, seconds=600, lines=600))
    with served(api):
        command = [sys.executable, str(ROOT / "cluster" / "submit.py"), "--retries", "3", "--address", api.url, *JOB]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "line 0\n"
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        (job,) = api.jobs.values()
        assert job.stopped
    assert process.returncode == code
    assert said.endswith("stopped by SIGTERM\n")


def submitted(cluster: Cluster, folder: Path, *job: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "cluster" / "submit.py"), "--address", cluster.dashboard, "--", *job]
    return subprocess.Popen(command, cwd=folder, env=cluster.environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_on_a_real_cluster_codes_signals_and_a_wrong_token(tmp_path: Path) -> None:
    (tmp_path / "end.py").write_text(
        "import sys, time\nprint('begun')\ntime.sleep(float(sys.argv[2]))\nsys.exit(int(sys.argv[1]))\n"
    )
    with ray_cluster() as cluster:
        for code in (0, 2, 3, 4, 143):
            process = submitted(cluster, tmp_path, "end.py", str(code), "0")
            said, _ = process.communicate(timeout=120)
            assert (process.returncode, said.count("begun\n")) == (code, 1)  # after what Ray says of its own
        process = submitted(cluster, tmp_path, "end.py", "0", "600")
        assert process.stdout is not None
        assert "begun\n" in iter(process.stdout.readline, "")
        process.terminate()
        process.communicate(timeout=120)
        assert process.returncode == 143
        listed = subprocess.run(
            [RAY, "job", "list", "--address", cluster.dashboard],
            env=cluster.environment,
            capture_output=True,
            text=True,
        )
        assert "RUNNING" not in listed.stdout
        assert "STOPPED" in listed.stdout
        cluster.environment["RAY_AUTH_TOKEN"] = "0" * 32
        process = submitted(cluster, tmp_path, "end.py", "0", "0")
        process.communicate(timeout=120)
        assert process.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("by", ["submit.py", "ray job stop"])
def test_a_stopped_segmentation_is_recorded_and_leaves_nothing_behind(by: str, bucket: str, tmp_path: Path) -> None:
    bench = Bench(bucket)
    save_model(bench.model, width=16)
    fill(bench.images, [f"{i:03}.png" for i in range(300)])
    job = ["jobs/segment.py", "--input", bench.images, "--output", bench.masks, "--model", bench.model]
    with ray_cluster() as cluster, (tmp_path / "log").open("w") as log:
        command = [sys.executable, "cluster/submit.py", "--address", cluster.dashboard, "--", *job]
        process = subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while len(bench.mask_keys()) < 60:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        if by == "submit.py":
            process.terminate()
        else:
            said = re.search(r"job (unet-\S+):", (tmp_path / "log").read_text())
            assert said is not None
            name = said[1]
            assert cluster.ray("job", "stop", "--address", cluster.dashboard, name).returncode == 0
        assert process.wait(60) == 143
        acquire(bench.masks, LEASE_KEY, run="next", lifetime=5, fence=99).release()  # the output is free
        unrecorded = {key.removesuffix(".png") for key in bench.mask_keys()} - bench.recorded_keys()
        assert len(unrecorded) <= 2 * 2 * 9  # of the chunks under way: two workers, two each, a 32nd of what is listed
        deadline = time.monotonic() + 30
        while [one for one in processes_naming(cluster.folder) if b"SegmentWorker" in command_line(one)]:
            assert time.monotonic() < deadline, "an actor is left"
            time.sleep(0.5)
    assert set(bench.statuses().values()) == {"done", "unchanged"}
