"""Make a run of a RayJob that stands suspended as a pattern, and end as it ends: `rayjob.py unet-segment`.

It runs in a pod of a Kubernetes Job and needs nothing but Python. The RayJob is named after the Job and belongs to it:
a pod that takes another's place finds the run and waits for it, and with the Job the run goes too. Its exit code is the
driver's, which KubeRay only passes on in a message, so that the Job can tell what is worth another attempt.
"""

import hashlib
import json
import os
import re
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

POLL_SECONDS = 10.0

PATIENCE_SECONDS = 600.0
"""How long Kubernetes may not answer."""

UNEXPECTED, FAULTY_REQUEST, STOPPED = 1, 2, 143

FINAL = {0, FAULTY_REQUEST, 3, 130, STOPPED}
"""Exit codes after which nothing is to be tried again."""

MAX_NAME, NAME = 47, re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""Length and form of a RayJob's name: KubeRay names services after it. A Job's may be longer, and of another form."""

ENDED = ("Complete", "Failed", "ValidationFailed")
"""What KubeRay says of the deployment of a job that is over."""


class Kubernetes:
    """RayJobs of this pod's namespace."""

    def __init__(self, host: str, account: Path = ACCOUNT) -> None:
        namespace = (account / "namespace").read_text().strip()
        self.url = f"{host}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self.account = account
        authority = account / "ca.crt"
        self.trust = ssl.create_default_context(cafile=str(authority)) if host.startswith("https") else None

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the RayJob; None if there is none."""
        return self._ask("GET", f"{self.url}/{name}")

    def create(self, job: Mapping[str, Any]) -> None:
        """Create a RayJob, unless it is there."""
        self._ask("POST", self.url, json.dumps(job).encode())

    def _ask(self, verb: str, url: str, body: bytes | None = None) -> dict[str, Any] | None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            token = (self.account / "token").read_text().strip()  # it is renewed
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            request = urllib.request.Request(url, body, headers, method=verb)
            try:
                with urllib.request.urlopen(request, timeout=30, context=self.trust) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                if (verb, error.code) in (("GET", 404), ("POST", 409)):
                    return None
                if error.code < 500 and error.code != 429:
                    raise SystemExit(
                        f"error: {verb} {url}: {error.code} {error.read(500).decode(errors='replace')}"
                    ) from None
                last: Exception = error
            except OSError as error:
                last = error
            if time.monotonic() > deadline:
                raise SystemExit(f"error: {verb} {url}: {last}")
            time.sleep(POLL_SECONDS)


def name_of(owner: str, attempt: int) -> str:
    """Return the name of an attempt: that of its Job and a number. A long one is cut, and a digest tells it apart."""
    ending = f"-{attempt}"
    if len(owner + ending) > MAX_NAME:
        ending = f"-{hashlib.sha256(owner.encode()).hexdigest()[:8]}{ending}"
    return owner[: MAX_NAME - len(ending)] + ending


def run_of(pattern: Mapping[str, Any], name: str, owner: str, uid: str) -> dict[str, Any]:
    """Return the pattern as a run that begins at once."""
    labels = pattern["metadata"].get("labels", {})
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": owner, "uid": uid}
    return {
        "apiVersion": pattern["apiVersion"],
        "kind": pattern["kind"],
        "metadata": {"name": name, "labels": labels, "ownerReferences": [reference]},
        "spec": {**pattern["spec"], "suspend": False},
    }


def exit_code(status: Mapping[str, Any]) -> int | None:
    """Return the driver's exit code; None while the run goes on."""
    if status.get("jobDeploymentStatus") not in ENDED:
        return None
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return FAULTY_REQUEST
    if status.get("jobStatus") == "SUCCEEDED":
        return 0
    if status.get("jobStatus") == "STOPPED":
        return STOPPED
    said = re.search(r"failed with exit code (-?\d+)", status.get("message") or "")
    code = int(said[1]) if said else UNEXPECTED
    return code if code >= 0 else 128 - code


def run(kubernetes: Kubernetes, pattern: str, owner: str, uid: str) -> int:
    """Make a run, or find that of an earlier pod, and wait for its end; return the exit code."""
    made = kubernetes.get(pattern)
    if made is None:
        print(f"error: there is no RayJob {pattern}; apply the manifests", file=sys.stderr)
        return FAULTY_REQUEST
    if not NAME.fullmatch(owner):
        remedy = "give the Job a name of small letters, digits and '-' that begins with a letter"
        print(f"error: Job {owner}: KubeRay takes no RayJob of this name; {remedy}", file=sys.stderr)
        return FAULTY_REQUEST
    attempt = 1
    while before := kubernetes.get(name := name_of(owner, attempt)):
        if exit_code(before.get("status", {})) in (None, *FINAL):
            break
        attempt += 1
    if before is None:
        kubernetes.create(run_of(made, name, owner, uid))
    print(f"RayJob {name}; its log: kubectl logs -f job/{name}", flush=True)
    while True:
        job = kubernetes.get(name)
        if job is None:
            print(f"RayJob {name} was deleted", flush=True)
            return STOPPED
        status = job.get("status", {})
        if (code := exit_code(status)) is not None:
            print(
                f"RayJob {name}: {status.get('jobStatus')}, exit code {code}\n{status.get('message', '')}", flush=True
            )
            return code
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    # The first process of a container has no default; an exception would be lost where it interrupts a destructor.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED))
    api = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    sys.exit(run(Kubernetes(api), sys.argv[1], os.environ["JOB_NAME"], os.environ["JOB_UID"]))
