"""Submit a job to a Ray cluster and end as the job ends: `unet submit -- jobs/segment.py --input ...`.

The log of the job is followed, and the exit code is the driver's own. Ray's command returns 0 for a job that was
stopped and for one whose log stream broke; here the cluster is asked how the job ended, whatever became of the stream.
SIGTERM and SIGINT stop the job and wait for its end. A token for the cluster is used where Ray finds one, in
RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, unless RAY_AUTH_MODE is set.
"""

import argparse
import asyncio
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

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from unet.runtime.ray_internals import use_token_if_found

T = TypeVar("T")

UNEXPECTED, FAULTY_REQUEST, HELD = 1, 2, 4
"""Exit codes of the jobs that mean something here."""

WORTH_RETRYING = {UNEXPECTED, HELD, 128 + signal.SIGKILL, 128 + signal.SIGSEGV, 128 + signal.SIGABRT}
"""A crash, and an output that another run holds, which is waited for. The same request stays faulty (2), the same
objects fail (3), and who stops a job (143, 130) does not want it begun again."""

POLL_SECONDS = 2.0
"""Between two questions whether the job has ended."""

REQUEST_SECONDS = 60.0
"""How long the cluster may be silent within a request. Without a limit a cut connection is waited for without end."""

SILENCE_SECONDS = 120.0
"""After which a stream that says nothing is opened anew: nothing tells it from one that was cut."""

DRAIN_SECONDS = 15.0
"""How long the log of a job that has ended is waited for, whose last lines no stream may have sent."""

STOP_SECONDS = 60.0
"""How long a stopped job may take to end; Ray kills it sooner."""

MISSING = "does not exist"
"""What the answer about a job says that the cluster does not know."""

EXCLUDES = (".git", ".github", ".ci", ".venv", "/tests", "/runs", "/build", ".env", "*.pem", "*.key", "__pycache__")
"""What never travels with the code, beside what .gitignore names."""


class JobLost(Exception):  # noqa: N818
    """The cluster does not know the job, or has not answered for too long."""


class Client(JobSubmissionClient):
    """Ray's client, whose requests time out."""

    def _do_request(self, method: str, endpoint: str, **parts: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST_SECONDS, **parts)


class Cluster:
    """The Jobs API of a cluster that may be away for up to `patience` seconds."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.client: Client | None = None

    async def ask(self, request: Callable[[Client], T]) -> T:
        """Return what `request` returns; make it again while the cluster does not answer.

        Raises:
            JobLost: the cluster does not know the job, or has not answered for `patience` seconds.
            AuthenticationError: the cluster asks for another token.
        """
        deadline, announced = time.monotonic() + self.patience, False
        while True:
            answer = asyncio.ensure_future(asyncio.to_thread(lambda: request(self._connect())))
            try:
                return await asyncio.shield(answer)
            except asyncio.CancelledError:
                with suppress(Exception):
                    await answer  # it cannot be taken back, and what it does must be known
                raise
            except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
                if MISSING in str(error):
                    raise JobLost("the cluster does not know it any more") from None
                if time.monotonic() > deadline:
                    raise JobLost(
                        f"no answer from the cluster for {self.patience:g} s ({_first_line(error)})"
                    ) from None
                if not announced:
                    _log(f"waiting for the cluster: {_first_line(error)}")
                announced = True
            await asyncio.sleep(POLL_SECONDS)

    def _connect(self) -> Client:
        if self.client is None:
            self.client = Client()
        return self.client


class Job:
    """One submission. `unfinished`: it may be running."""

    def __init__(self, cluster: Cluster, entrypoint: str, runtime_env: dict[str, Any]) -> None:
        self.cluster, self.entrypoint, self.runtime_env = cluster, entrypoint, runtime_env
        self.id = "unet-" + time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + secrets.token_hex(3)
        self.unfinished = False
        self._shown = 0

    async def run(self) -> int:
        """Submit the job and follow it to its end; return its exit code, 1 for one that is lost from sight."""
        try:
            await self._submit()
            return await self._follow()
        except JobLost as error:
            _log(f"error: job {self.id} is lost: {error}")
            self.cluster.client = None
            return UNEXPECTED

    async def stop(self) -> None:
        """Stop the job and wait for its end."""
        with suppress(JobLost, TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self.cluster.ask(lambda client: client.stop_job(self.id))
                await self._follow()

    async def _submit(self) -> None:
        """Submit the job unless it is there: the id is ours, so a request whose answer was lost is not made twice."""

        def submit(client: Client) -> None:
            try:
                client.submit_job(entrypoint=self.entrypoint, submission_id=self.id, runtime_env=self.runtime_env)
                self._shown = 0
            except (OSError, RuntimeError) as error:
                if not self._is_there(client):
                    raise ConnectionError(_first_line(error)) from None

        self.unfinished = True
        await self.cluster.ask(submit)
        _log(f"job {self.id}: {self.entrypoint}")

    def _is_there(self, client: Client) -> bool:
        try:
            client.get_job_info(self.id)
        except RuntimeError as error:
            if MISSING in str(error):
                return False
            raise
        return True

    async def _follow(self) -> int:
        """Print the log of the job until it has ended; return its exit code."""
        printing = asyncio.create_task(self._print_streams())
        try:
            while not (details := await self._details()).status.is_terminal():
                await asyncio.sleep(POLL_SECONDS)
        finally:
            printing.cancel()
        self.unfinished = False
        with suppress(JobLost, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                self._print(await self.cluster.ask(lambda client: client.get_job_logs(self.id)))
        return exit_code(details)

    async def _details(self) -> JobDetails:
        return await self.cluster.ask(lambda client: client.get_job_info(self.id))

    async def _print_streams(self) -> None:
        """Print the log as it grows, from one stream after another: one that was cut may look as if it had ended."""
        while True:
            with suppress(OSError, RuntimeError, aiohttp.ClientError):
                await self._print_stream()
            await asyncio.sleep(POLL_SECONDS)

    async def _print_stream(self) -> None:
        assert self.cluster.client is not None
        stream, passed = self.cluster.client.tail_job_logs(self.id), 0
        with suppress(StopAsyncIteration):
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    text = await anext(stream)
                self._print(text, passed)
                passed += len(text)

    def _print(self, text: str, start: int = 0) -> None:
        """Print what is not shown yet of a text that stands at `start` in the log."""
        print(text[max(0, self._shown - start) :], end="", flush=True)
        self._shown = max(self._shown, start + len(text))


def exit_code(details: JobDetails) -> int:
    """Return the driver's exit code, 128 + N where signal N ended it, 1 for a driver that never ran or was lost."""
    if details.status == JobStatus.STOPPED:  # Ray does not keep the driver's code
        return 128 + signal.SIGTERM
    code = details.driver_exit_code
    if code is None:
        if details.status == JobStatus.SUCCEEDED:
            return 0
        _log(f"the job has failed without an exit code: {details.message}")
        return UNEXPECTED
    return code if code >= 0 else 128 - code


async def run(options: argparse.Namespace) -> int:
    """Run the job, again where that is worth it; return the last exit code, or 128 + the number of a signal."""
    jobs: list[Job] = []
    received: list[int] = []
    attempts = asyncio.ensure_future(_run_attempts(options, jobs))

    def stop(number: int) -> None:
        if not received:  # a second signal must not keep the job from being stopped
            attempts.cancel()
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await attempts
    except asyncio.CancelledError:
        if jobs and jobs[-1].unfinished:
            _log(f"stopped by {signal.Signals(received[0]).name}: stopping job {jobs[-1].id}")
            await jobs[-1].stop()
        return 128 + received[0]


async def _run_attempts(options: argparse.Namespace, jobs: list[Job]) -> int:
    """Run a job for each attempt and append it to `jobs`; one that was lost is looked for again. Return the last exit
    code."""
    cluster = Cluster(options.patience)
    environment = {"working_dir": options.working_dir, "excludes": [*EXCLUDES, *options.exclude]}
    attempt = 1
    while True:
        if not (jobs and jobs[-1].unfinished):
            jobs.append(Job(cluster, entrypoint_of(options.command), environment))
        code = await jobs[-1].run()
        if code not in WORTH_RETRYING or attempt > options.retries:
            return code
        attempt += 1
        pause = options.pause_held if code == HELD else options.pause
        _log(f"exit code {code}; attempt {attempt} of {options.retries + 1} follows in {pause:g} s")
        await asyncio.sleep(pause)


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
    if not Path(options.working_dir).is_dir():
        _log(f"error: --working-dir {options.working_dir}: no such folder")
        return FAULTY_REQUEST
    if options.address:
        os.environ["RAY_API_SERVER_ADDRESS"] = options.address  # Ray lets RAY_ADDRESS win over what it is told
    try:
        use_token_if_found()
        return asyncio.run(run(options))
    except AuthenticationError as error:
        reason = _first_line(error).split(". ")[0]
        _log(f"error: {reason}; give the cluster's token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token")
    except ValueError as error:  # a folder too large to travel, an address that is none
        _log(f"error: {_first_line(error)}")
    return FAULTY_REQUEST


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
