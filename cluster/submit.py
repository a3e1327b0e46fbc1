"""Submits a job to a Ray cluster and ends as the job ends: `python cluster/submit.py -- jobs/segment.py --input ...`.

The log of the job is followed, and the exit code is the driver's own. Ray's command returns 0 for a job that was
stopped and for one whose log stream broke; here the cluster is asked how the job ended, whatever became of the stream.
SIGTERM and SIGINT stop the job and wait for its end. What is worth another attempt is decided by `WORTH_RETRYING`.
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
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

T = TypeVar("T")

UNEXPECTED, FAULTY_REQUEST, HELD = 1, 2, 4
"""Exit codes of the jobs that mean something here: see README.md."""

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
"""How long the last lines of a job that has ended are waited for."""

STOP_SECONDS = 60.0
"""How long a stopped job may take to end; Ray kills it sooner."""

MISSING = "does not exist"
"""What the answer about a job says that the cluster does not know."""

EXCLUDES = (".git", ".github", ".ci", ".venv", "/tests", "/runs", "/build", ".env", "*.pem", "*.key", "__pycache__")
"""What never travels with the code, beside what .gitignore names."""


class Lost(Exception):  # noqa: N818
    """The cluster does not know the job, or has not answered for too long."""


class Stopped(Exception):  # noqa: N818
    """A signal has come."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number


class Client(JobSubmissionClient):
    """Ray's own, whose requests end."""

    def _do_request(self, method: str, endpoint: str, **parts: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST_SECONDS, **parts)


class Cluster:
    """The Jobs API of a cluster that may be away for up to `patience` seconds. Raises: Lost, AuthenticationError."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.client: Client | None = None

    async def ask(self, question: Callable[[Client], T]) -> T:
        """What `question` returns, which is asked again while the cluster does not answer."""
        deadline, silent = time.monotonic() + self.patience, False
        while True:
            request = asyncio.ensure_future(asyncio.to_thread(lambda: question(self._connected())))
            try:
                return await asyncio.shield(request)
            except asyncio.CancelledError:
                with suppress(Exception):
                    await request  # it cannot be taken back, and what it does must be known
                raise
            except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
                if MISSING in str(error):
                    raise Lost("the cluster does not know it any more") from None
                if time.monotonic() > deadline:
                    raise Lost(f"no answer from the cluster for {self.patience:g} s ({_first_line(error)})") from None
                if not silent:
                    _say(f"waiting for the cluster: {_first_line(error)}")
                silent = True
            await asyncio.sleep(POLL_SECONDS)

    def _connected(self) -> Client:
        if self.client is None:
            self.client = Client()
        return self.client


class Job:
    """One submission."""

    def __init__(self, cluster: Cluster, entrypoint: str, runtime_env: dict[str, Any]) -> None:
        self.cluster, self.entrypoint, self.runtime_env = cluster, entrypoint, runtime_env
        self.id = "unet-" + time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + secrets.token_hex(3)
        self._shown = 0

    async def submit(self) -> None:
        """Submits, unless it is there: the id is ours, so a request whose answer was lost is not made twice."""

        def submit(client: Client) -> None:
            try:
                client.submit_job(entrypoint=self.entrypoint, submission_id=self.id, runtime_env=self.runtime_env)
                self._shown = 0
            except (OSError, RuntimeError) as error:
                if not self._is_there(client):
                    raise ConnectionError(_first_line(error)) from None

        await self.cluster.ask(submit)
        _say(f"job {self.id}: {self.entrypoint}")

    def _is_there(self, client: Client) -> bool:
        try:
            client.get_job_info(self.id)
        except RuntimeError as error:
            if MISSING in str(error):
                return False
            raise
        return True

    async def attend(self) -> int:
        """Follows the job to its end; returns its exit code."""
        following = asyncio.create_task(self._follow())
        try:
            while not (details := await self._details()).status.is_terminal():
                await asyncio.sleep(POLL_SECONDS)
            await asyncio.wait((following,), timeout=DRAIN_SECONDS)
        finally:
            following.cancel()
        return exit_code(details)

    async def stop(self) -> None:
        """Stops the job and waits for its end."""
        with suppress(Lost, TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self.cluster.ask(lambda client: client.stop_job(self.id))
                await self.attend()

    async def _details(self) -> JobDetails:
        return await self.cluster.ask(lambda client: client.get_job_info(self.id))

    async def _follow(self) -> None:
        """Prints the log, to the last line: a stream that began before the end may have been cut short unseen."""
        while True:
            ended = (await self._details()).status.is_terminal()
            try:
                await self._stream()
            except (OSError, RuntimeError, aiohttp.ClientError):
                ended = False
            if ended:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _stream(self) -> None:
        """A stream begins with the first line of the log: what is shown already is left out."""
        client = self.cluster.client
        assert client is not None
        stream, passed = client.tail_job_logs(self.id), 0
        with suppress(StopAsyncIteration):
            while True:
                text = await asyncio.wait_for(anext(stream), SILENCE_SECONDS)
                fresh = text[max(0, self._shown - passed) :]
                passed += len(text)
                if fresh:
                    self._shown = passed
                    print(fresh, end="", flush=True)


def exit_code(details: JobDetails) -> int:
    """What the job returned, 128 + N where signal N ended it; 1 for a driver that never ran or was lost."""
    if details.status == JobStatus.STOPPED:  # Ray does not keep the driver's code
        return 128 + signal.SIGTERM
    code = details.driver_exit_code
    if code is None:
        if details.status == JobStatus.SUCCEEDED:
            return 0
        _say(f"the job has failed without an exit code: {details.message}")
        return UNEXPECTED
    return code if code >= 0 else 128 - code


async def run(options: argparse.Namespace) -> int:
    """Submits, again where that is worth it; returns the exit code of the last attempt."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    cluster = Cluster(options.patience)
    environment = {"working_dir": options.working_dir, "excludes": [*EXCLUDES, *options.exclude]}
    job = Job(cluster, entrypoint_of(options.command), environment)
    for attempt in range(options.retries + 1):
        code, lost = await _attempt(job, signals)
        if code not in WORTH_RETRYING or attempt == options.retries:
            break
        pause = options.pause_held if code == HELD else options.pause
        _say(f"exit code {code}; attempt {attempt + 2} of {options.retries + 1} follows in {pause:g} s")
        try:
            await _unless_stopped(asyncio.sleep(pause), signals)
        except Stopped as stop:
            if lost:  # it may be running all the same
                await job.stop()
            return stop.code
        if not lost:
            job = Job(cluster, job.entrypoint, environment)
    return code


async def _attempt(job: Job, signals: "asyncio.Queue[int]") -> tuple[int, bool]:
    """Exit code, and whether the job is lost from sight: then the next attempt looks for it first."""
    try:
        await _unless_stopped(job.submit(), signals)
        return await _unless_stopped(job.attend(), signals), False
    except Lost as error:
        _say(f"error: job {job.id} is lost: {error}")
        job.cluster.client = None
        return UNEXPECTED, True
    except Stopped as stop:
        _say(f"{stop}: stopping job {job.id}")
        await job.stop()
        return stop.code, False


async def _unless_stopped(work: Any, signals: "asyncio.Queue[int]") -> Any:
    """What `work` returns. Raises: Stopped if a signal comes first."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(signals.get())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    if stopping.done() and not working.done():
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        raise Stopped(stopping.result())
    stopping.cancel()
    return working.result()


def entrypoint_of(command: list[str]) -> str:
    """The shell's command for a script and its flags."""
    return shlex.join((["python"] if command[0].endswith(".py") else []) + command)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options before `--`, the job's command after it."""
    parser = argparse.ArgumentParser(
        prog="submit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--address",
        help="http://HOST:8265 of the cluster's head; default: RAY_ADDRESS, else the cluster on this machine",
    )
    parser.add_argument("--working-dir", default=".", help="folder that travels to the cluster; default: this one")
    parser.add_argument("--exclude", action="append", default=[], help="pattern as in .gitignore that does not travel")
    parser.add_argument("--retries", type=int, default=0, help="further attempts after exit codes 1 and 4; default: 0")
    parser.add_argument("--pause", type=float, default=30.0, help="seconds before an attempt after 1; default: 30")
    parser.add_argument(
        "--pause-held", type=float, default=300.0, help="seconds before an attempt after 4, another run; default: 300"
    )
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds without an answer before a job is lost; default: 600"
    )
    parser.add_argument("command", nargs="+", help="-- and the job: jobs/segment.py --input ...")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Parses and runs; returns the exit code."""
    options = parse(arguments)
    if not Path(options.working_dir).is_dir():
        _say(f"error: --working-dir {options.working_dir}: no such folder")
        return FAULTY_REQUEST
    if options.address:
        os.environ["RAY_API_SERVER_ADDRESS"] = options.address  # Ray lets RAY_ADDRESS win over what it is told
    try:
        return asyncio.run(run(options))
    except AuthenticationError:
        _say("error: the cluster refuses the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")
        return FAULTY_REQUEST
    except ValueError as error:  # a folder too large to travel, an address that is none
        _say(f"error: {_first_line(error)}")
        return FAULTY_REQUEST


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
