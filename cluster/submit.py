"""Submit a job to a Ray cluster and end as the job ends: `python cluster/submit.py -- jobs/segment.py --input ...`.

`unet submit` is the same: an installed package has this file as `unet_cluster.submit`.

The log of the job is printed as it grows, and the exit code is the driver's own. Ray's command returns 0 for a job that
was stopped and for one whose log stream broke; here the cluster is asked how the job ended. SIGTERM and SIGINT stop the
job and wait for its end. A token for the cluster is used where Ray finds one, in RAY_AUTH_TOKEN, the file
RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, unless RAY_AUTH_MODE is set.
"""

import argparse
import io
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from unet.runtime.ray_internals import use_token_if_found
from unet.settings import ExitCode

T = TypeVar("T")

CRASHES = {128 + number for number in signal.valid_signals()} - {128 + signal.SIGINT, 128 + signal.SIGTERM}

WORTH_RETRYING = {ExitCode.UNEXPECTED, ExitCode.OUTPUT_HELD} | CRASHES
"""A crash, and an output that another run holds, which is waited for. The same request stays faulty (2), the same
objects fail (3), and who stops a job (143, 130) does not want it begun again."""

POLL_SECONDS = 2.0
"""Between two questions how far the job is."""

SLEEP_SECONDS = 0.2
"""How long a signal may go unnoticed between two requests."""

REQUEST_SECONDS = 60.0
"""How long the cluster may be silent within a request. Without a limit a cut connection is waited for without end."""

DRAIN_SECONDS = 15.0
"""How long the last lines of a job that has ended are waited for."""

STOP_SECONDS = 60.0
"""How long a stopped job may take to end; Ray kills it sooner."""

MISSING = "does not exist"
"""What the answer about a job says that the cluster does not know."""

EXCLUDES = (".git", ".github", ".ci", ".venv", "/tests", "/runs", "/build", ".env", "*.pem", "*.key", "__pycache__")
"""What never travels with the code, beside what .gitignore names."""


class JobLost(Exception):  # noqa: N818
    """The cluster does not know the job, or has not answered for too long."""


class Stopped(Exception):  # noqa: N818
    """SIGTERM or SIGINT has come."""


class Client(JobSubmissionClient):
    """Ray's client, whose requests time out."""

    def _do_request(self, method: str, endpoint: str, **parts: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST_SECONDS, **parts)


class Cluster:
    """The Jobs API of a cluster that may be away for a while. `on_signal` handles the signals that stop the job."""

    def __init__(self) -> None:
        self.client: Client | None = None
        self.signal = 0
        """The first that came."""
        self._told = False

    def on_signal(self, number: int, _: object) -> None:
        """Note the signal. What a handler raises would be lost where it interrupts a destructor."""
        self.signal = self.signal or number

    def sleep(self, seconds: float) -> None:
        """Wait; raise Stopped once a signal has come, but for the first time alone: the job is then being stopped."""
        deadline = time.monotonic() + seconds
        while True:
            self._tell()
            if (left := deadline - time.monotonic()) <= 0:
                return
            time.sleep(min(left, SLEEP_SECONDS))

    def _tell(self) -> None:
        if self.signal and not self._told:
            self._told = True
            raise Stopped

    def ask(self, request: Callable[[Client], T], patience: float) -> T:
        """Return what `request` returns; make it again while the cluster does not answer.

        Raises:
            JobLost: the cluster does not know the job, or has not answered for `patience` seconds.
            AuthenticationError: the cluster asks for another token.
        """
        deadline, announced = time.monotonic() + patience, False
        while True:
            try:
                return self._ask_once(request)
            except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
                if MISSING in str(error):
                    raise JobLost("the cluster does not know it any more") from None
                if time.monotonic() > deadline:
                    raise JobLost(f"no answer from the cluster for {patience:g} s ({_first_line(error)})") from None
                if not announced:
                    _log(f"waiting for the cluster: {_first_line(error)}")
                announced = True
            self.sleep(POLL_SECONDS)

    def _ask_once(self, request: Callable[[Client], T]) -> T:
        try:
            self.client = self.client or Client()
            return request(self.client)
        finally:
            self._tell()  # not before its end: what a request does must be known


class Job:
    """One submission. `unfinished`: it may be running."""

    def __init__(self, cluster: Cluster, options: argparse.Namespace) -> None:
        self.cluster, self.patience = cluster, options.patience
        self.entrypoint = entrypoint_of(options.command)
        self.runtime_env = {"working_dir": options.working_dir, "excludes": [*EXCLUDES, *options.exclude]}
        self.id = "unet-" + time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + secrets.token_hex(3)
        self.unfinished = False
        self._printed = 0

    def run(self) -> int:
        """Submit the job and follow it to its end; return its exit code, 1 for one that is lost from sight."""
        self.unfinished = True
        try:
            self.cluster.ask(self._submit, self.patience)
            _log(f"job {self.id}: {self.entrypoint}")
            return self._follow()
        except JobLost as error:
            _log(f"error: job {self.id} is lost: {error}")
            self.cluster.client = None
            return ExitCode.UNEXPECTED

    def stop(self) -> None:
        """Stop the job and wait for its end."""
        with suppress(JobLost):
            self.cluster.ask(lambda client: client.stop_job(self.id), STOP_SECONDS)
            self._follow(STOP_SECONDS)

    def _submit(self, client: Client) -> None:
        """Submit the job unless it is there: the id is ours, so a request whose answer was lost is not made twice."""
        try:
            client.submit_job(entrypoint=self.entrypoint, submission_id=self.id, runtime_env=self.runtime_env)
            self._printed = 0
        except (OSError, RuntimeError) as error:
            try:
                client.get_job_info(self.id)
            except RuntimeError as missing:
                if MISSING not in str(missing):
                    raise
                raise ConnectionError(_first_line(error)) from None

    def _follow(self, seconds: float = float("inf")) -> int:
        """Print the log of the job until it has ended, or for so long; return its exit code."""
        deadline = time.monotonic() + seconds
        while True:
            details = self.cluster.ask(lambda client: client.get_job_info(self.id), self.patience)
            if details.status.is_terminal():
                break
            self._print_log()
            if time.monotonic() > deadline:
                raise JobLost(f"it has not ended within {seconds:g} s")
            self.cluster.sleep(POLL_SECONDS)
        self.unfinished = False
        deadline = time.monotonic() + DRAIN_SECONDS
        while not self._print_log() and time.monotonic() < deadline:
            self.cluster.sleep(POLL_SECONDS)
        return exit_code(details)

    def _print_log(self) -> bool:
        """Print what the log has gained; return whether the cluster could tell."""
        assert self.cluster.client is not None
        try:
            text = self.cluster.client.get_job_logs(self.id)
        except (OSError, RuntimeError):
            return False
        try:
            print(text[self._printed :], end="", flush=True)
        except OSError:  # nobody reads it any more: the job goes on, and is followed
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        self._printed = len(text)
        return True


def exit_code(details: JobDetails) -> int:
    """Return the driver's exit code, 128 + N where signal N ended it, 1 for a driver that never ran or was lost."""
    if details.status == JobStatus.STOPPED:  # Ray does not keep the driver's code
        return 128 + signal.SIGTERM
    code = details.driver_exit_code
    if code is None:
        if details.status == JobStatus.SUCCEEDED:
            return 0
        _log(f"the job has failed without an exit code: {details.message}")
        return ExitCode.UNEXPECTED
    return code if code >= 0 else 128 - code


def run(options: argparse.Namespace) -> int:
    """Run the job, again where that is worth it; return the last exit code, or 128 + the number of a signal."""
    cluster, attempt = Cluster(), 1
    job = Job(cluster, options)
    handlers = {number: signal.signal(number, cluster.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while (code := job.run()) in WORTH_RETRYING and attempt <= options.retries:
            attempt += 1
            pause = options.pause_held if code == ExitCode.OUTPUT_HELD else options.pause
            _log(f"exit code {code}; attempt {attempt} of {options.retries + 1} follows in {pause:g} s")
            cluster.sleep(pause)
            if not job.unfinished:  # one that was lost is looked for again
                job = Job(cluster, options)
        return code
    except Stopped:
        if job.unfinished:
            _log(f"stopped by {signal.Signals(cluster.signal).name}: stopping job {job.id}")
            job.stop()
        return 128 + cluster.signal
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def entrypoint_of(command: list[str]) -> str:
    """Return the command as a line for the shell, with `python` before a script."""
    return shlex.join((["python"] if command[0].endswith(".py") else []) + command)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options before `--` and the job's command after it."""
    parser = argparse.ArgumentParser(
        "unet submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--address", help="http://HOST:8265 of the cluster's head; default: RAY_ADDRESS, else the one on this machine")
    add("--working-dir", default=".", help="folder that travels to the cluster; default: this one")
    add("--exclude", action="append", default=[], help="pattern as in .gitignore that does not travel")
    add("--retries", type=int, default=0, help="further attempts after exit codes 1 and 4; default: 0")
    add("--pause", type=float, default=30.0, help="seconds before an attempt after 1; default: 30")
    add("--pause-held", type=float, default=300.0, help="seconds before an attempt after 4, another run; default: 300")
    add("--patience", type=float, default=600.0, help="seconds without an answer before a job is lost; default: 600")
    add("command", nargs="+", help="-- and the job: jobs/segment.py --input ..., or unet segment --input ...")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Parse the arguments, run the job, return the exit code."""
    options = parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a log may hold any name of an object
    if not Path(options.working_dir).is_dir():
        _log(f"error: --working-dir {options.working_dir}: no such folder")
        return ExitCode.BAD_REQUEST
    if options.address:
        os.environ["RAY_API_SERVER_ADDRESS"] = options.address  # Ray lets RAY_ADDRESS win over what it is told
    try:
        use_token_if_found()
        return run(options)
    except AuthenticationError as error:
        reason = _first_line(error).split(". ")[0]
        _log(f"error: {reason}; give the cluster's token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token")
    except ValueError as error:  # a folder too large to travel, an address that is none
        _log(f"error: {_first_line(error)}")
    return ExitCode.BAD_REQUEST


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
