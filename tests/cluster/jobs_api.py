"""A stand-in for the Jobs API of a Ray cluster: jobs end as a test says, and what fails is what the test asks for.

It speaks HTTP, and the client that talks to it is Ray's own.
"""

import asyncio
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler


@dataclass
class Outcome:
    """How a job ends: its lines come one by one, then its driver's exit code; None: unknown to Ray."""

    code: int | None = 0
    lines: int = 5
    seconds: float = 0.3
    status: str = ""


@dataclass
class Submitted:
    """A job that was submitted."""

    body: dict[str, Any]
    outcome: Outcome
    began: float = field(default_factory=time.monotonic)
    stopped: bool = False

    @property
    def share(self) -> float:
        return min(1.0, (time.monotonic() - self.began) / self.outcome.seconds)

    @property
    def status(self) -> str:
        if self.stopped:
            return "STOPPED"
        if self.share < 1:
            return "RUNNING"
        return self.outcome.status or ("SUCCEEDED" if self.outcome.code == 0 else "FAILED")

    @property
    def log(self) -> str:
        written = "".join(f"line {number}\n" for number in range(int(self.share * self.outcome.lines)))
        return written + ("stopped by SIGTERM\n" if self.stopped else "")


class Api:
    """Jobs by submission id, in order, and the faults to come."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.jobs: dict[str, Submitted] = {}
        self.shipped: list[str] = []
        self.url = ""
        self.refusals = 0
        """Requests about jobs that are still answered with 503."""
        self.lost_answers = 0
        """Submissions that are still taken, and answered with 500."""
        self.cut_logs = 0
        """Answers with a log that still break off in their middle."""
        self.forgets_after = float("inf")
        """Questions after which the job asked for is forgotten, once, as by a head that was replaced."""
        self.questions = 0
        self.token = ""
        """What every request has to bring; empty: nothing."""
        self.tokens: set[str] = set()
        """What requests have brought."""

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26, middlewares=[self._authenticated])
        app.router.add_get("/api/version", self._version)
        app.router.add_route("*", "/api/packages/{protocol}/{name}", self._package)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{id}", self._details)
        app.router.add_post("/api/jobs/{id}/stop", self._stop)
        app.router.add_get("/api/jobs/{id}/logs", self._logs)
        return app

    @web.middleware
    async def _authenticated(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.tokens.add(token)
        if self.token and token != self.token:
            return web.Response(status=403 if token else 401, text="Invalid token" if token else "Missing token")
        return await handler(request)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def _package(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            with zipfile.ZipFile(io.BytesIO(await request.read())) as package:
                self.shipped = package.namelist()
            return web.json_response({})
        return web.Response(status=404, text="Package does not exist")

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["submission_id"]
        if name in self.jobs:
            return web.Response(status=500, text=f"Job with submission_id {name} already exists")
        self.jobs[name] = Submitted(body, self.outcomes.pop(0))
        if self.lost_answers:
            self.lost_answers -= 1
            return web.Response(status=500, text="lost")
        return web.json_response({"job_id": name, "submission_id": name})

    async def _details(self, request: web.Request) -> web.Response:
        self.questions += 1
        if self.refusals:
            self.refusals -= 1
            return web.Response(status=503, text="not now")
        if self.questions > self.forgets_after:
            self.jobs.pop(request.match_info["id"], None)
            self.forgets_after = float("inf")
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return web.Response(status=404, text=f"Job {request.match_info['id']} does not exist")
        ended = job.status in ("SUCCEEDED", "FAILED")
        return web.json_response(
            {
                "type": "SUBMISSION",
                "submission_id": request.match_info["id"],
                "status": job.status,
                "entrypoint": job.body["entrypoint"],
                "message": "the supervisor died" if job.outcome.code is None else "",
                "driver_exit_code": job.outcome.code if ended else None,
            }
        )

    async def _stop(self, request: web.Request) -> web.Response:
        self.jobs[request.match_info["id"]].stopped = True
        return web.json_response({"stopped": True})

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        body = json.dumps({"logs": self.jobs[request.match_info["id"]].log}).encode()
        answer = web.StreamResponse(headers={"Content-Length": str(len(body)), "Content-Type": "application/json"})
        await answer.prepare(request)
        if self.cut_logs:
            self.cut_logs -= 1
            await answer.write(body[: len(body) // 2])
            assert request.transport is not None
            request.transport.close()
        else:
            await answer.write(body)
        return answer


@contextmanager
def served(api: Api) -> Iterator[Api]:
    """Serve `api`, and set its url."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(api.application(), shutdown_timeout=0.5)

    async def begin() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        sockets = site._server.sockets  # type: ignore[attr-defined]
        api.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"

    loop.run_until_complete(begin())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
