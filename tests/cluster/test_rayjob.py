"""cluster/rayjob.py: a run is made of a pattern once, whichever pod asks, and ends with the exit code of its driver."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import rayjob

PATTERN = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "unet-segment", "uid": "of the pattern", "resourceVersion": "7"},
    "spec": {"suspend": True, "entrypoint": "python jobs/segment.py"},
    "status": {"jobDeploymentStatus": "Suspended"},
}

Ending = dict[str, Any]


def failed(code: int) -> Ending:
    message = (
        f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):\n..."
    )
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": message}


@contextmanager
def kubernetes(folder: Path, ending: Ending, faults: int = 0) -> Iterator[tuple[rayjob.Kubernetes, dict[str, Any]]]:
    """An API server with the pattern, whose RayJobs end so at the third look; the first requests fail."""
    jobs: dict[str, Any] = {"unet-segment": PATTERN}
    looks: dict[str, int] = {}
    left = [faults]

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, body: Any) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def refused(self) -> bool:
            assert self.headers["Authorization"] == "Bearer of-the-account"
            left[0] -= 1
            return left[0] >= 0

        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[1]
            if self.refused() or name not in jobs:
                return self.answer(503 if left[0] >= 0 else 404, {})
            looks[name] = looks.get(name, 0) + 1
            if name != "unet-segment" and looks[name] == 3:
                jobs[name]["status"] = ending
            return self.answer(200, jobs[name])

        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.refused() or job["metadata"]["name"] in jobs:
                return self.answer(503 if left[0] >= 0 else 409, {})
            jobs[job["metadata"]["name"]] = job
            return self.answer(201, job)

        def log_message(self, *_: Any) -> None:
            pass

    for name, text in (("token", "of-the-account\n"), ("namespace", "unet")):
        (folder / name).write_text(text)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield rayjob.Kubernetes(f"http://127.0.0.1:{server.server_port}", folder), jobs
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rayjob, "POLL_SECONDS", 0.01)


ENDINGS: list[tuple[Ending, int]] = [
    ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 143),
    ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, 1),
    ({"jobDeploymentStatus": "ValidationFailed"}, 2),
    *((failed(code), code) for code in (1, 2, 3, 4, 143)),
    (failed(-9), 137),
]


@pytest.mark.parametrize(("ending", "code"), ENDINGS)
def test_the_exit_code_is_the_drivers(ending: Ending, code: int, tmp_path: Path) -> None:
    with kubernetes(tmp_path, ending, faults=2) as (api, jobs):
        assert rayjob.run(api, "unet-segment", "night-1", "uid-1") == code
    assert jobs.keys() == {"unet-segment", "night-1-1"}
    made = jobs["night-1-1"]
    assert made["spec"] == {"suspend": False, "entrypoint": "python jobs/segment.py"}
    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    assert made["metadata"].keys() == {"name", "labels", "ownerReferences"}


def test_a_pod_in_anothers_place_waits_for_the_run_and_one_after_a_failure_makes_a_new_one(tmp_path: Path) -> None:
    with kubernetes(tmp_path, failed(1)) as (api, jobs):
        api.create(rayjob.run_of(PATTERN, "night-1-1", "night-1", "uid-1"))
        assert rayjob.run(api, "unet-segment", "night-1", "uid-1") == 1
        assert "night-1-2" not in jobs
        assert rayjob.run(api, "unet-segment", "night-1", "uid-1") == 1
        assert "night-1-2" in jobs


@pytest.mark.parametrize("code", [2, 3, 130, 143])
def test_a_pod_in_anothers_place_repeats_no_run_that_has_ended_for_good(code: int, tmp_path: Path) -> None:
    """The other pod was evicted before it saw the end: a second run would find nothing left to fail."""
    with kubernetes(tmp_path, failed(code)) as (api, jobs):
        for _ in range(2):
            assert rayjob.run(api, "unet-segment", "night-1", "uid-1") == code
        assert "night-1-2" not in jobs


def test_a_long_name_is_cut_and_still_the_same_for_every_pod(tmp_path: Path) -> None:
    owners = ["unet-segment-" + 40 * "x" + ending for ending in ("a", "b")]
    with kubernetes(tmp_path, failed(1)) as (api, jobs):
        for owner in owners:
            api.create(rayjob.run_of(PATTERN, rayjob.name_of(owner, 1), owner, "uid-1"))
            assert rayjob.run(api, "unet-segment", owner, "uid-1") == 1
    runs = jobs.keys() - {"unet-segment"}
    assert len(runs) == 2
    assert all(len(name) <= 47 and name.startswith("unet-segment-xxx") and name.endswith("-1") for name in runs)
    assert rayjob.name_of("n" * 45, 9) == "n" * 45 + "-9"
    assert len(rayjob.name_of("n" * 45, 10)) == 47


@pytest.mark.parametrize("owner", ["2026-street", "street.night", "Street"])
def test_a_name_that_kuberay_refuses_is_refused_before_anything_is_made(
    owner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with kubernetes(tmp_path, failed(1)) as (api, jobs):
        assert rayjob.run(api, "unet-segment", owner, "uid-1") == 2
    assert jobs.keys() == {"unet-segment"}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"Job {owner}: " in said
    assert "begins with a letter" in said


def test_without_a_pattern_the_request_is_faulty(tmp_path: Path) -> None:
    with kubernetes(tmp_path, failed(1)) as (api, _):
        assert rayjob.run(api, "unet-sgement", "night-1", "uid-1") == 2


def test_a_run_that_is_deleted_was_stopped(tmp_path: Path) -> None:
    with kubernetes(tmp_path, {}) as (api, jobs):
        deleting = threading.Timer(0.3, lambda: jobs.pop("night-1-1"))
        deleting.start()
        assert rayjob.run(api, "unet-segment", "night-1", "uid-1") == 143
        deleting.join()
