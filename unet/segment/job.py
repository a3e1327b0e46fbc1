"""The segmentation job: checks the request, runs the pipeline on Ray Data, records what it did.

The pipeline is a list of steps: list and leave out what is done -> fetch and decode -> predict -> encode and write ->
record. A chunk of objects travels through it as one row, so that chunks are neither merged nor cut on the way and the
first are segmented while the listing goes on. Recording is the driver's: a few hundred bytes an object, on to files.
"""

import hashlib
import json
import secrets
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
import ray
import yaml

from unet.model.artifact import Model
from unet.model.predictor import Predictor
from unet.runtime import telemetry
from unet.runtime.pipeline import connected_workers, dataset_of, pool, running
from unet.runtime.session import check_shared, join_cluster
from unet.runtime.stop import shutdown_hook, time_limit_exit
from unet.segment.lease import Lease, LeaseLost, acquire
from unet.segment.listing import LARGEST_CHUNK, LEASE, OWN, TODO, Chunk, Request, chunks
from unet.segment.manifest import check_manifest
from unet.segment.recorder import Recorder
from unet.segment.settings import SegmentSettings
from unet.segment.steps import Fetch, List, Predict, Segment, Write, lookup, publish, publish_lease
from unet.settings import RequestError, to_mapping
from unet.storage import store
from unet.storage.faults import StorageError, Unreachable
from unet.storage.listed import join

FAILED, BAD_REQUEST, TOO_MANY_FAILED, HELD = 1, 2, 3, 4

GLANCE = 20_000
"""Objects that are listed before a cluster is called for."""

AHEAD = 8 * LARGEST_CHUNK
"""Objects for each worker that are listed before the first of them is done: they wait in the driver's memory."""

SECONDS_PER_LINE = 5.0


def segment(settings: SegmentSettings) -> int:
    """The job: returns its exit code.

    Raises:
        RequestError: the request cannot be right; no worker has been started.
    """
    model, request = _prepare(settings)
    if settings.dry_run:
        return _dry_run(request)
    output = request.settings.output
    try:
        lease = acquire(output, LEASE, run=request.run, lifetime=settings.lease, fence=request.fence)
        code = FAILED
        try:
            code = _run(model, replace(request, fence=lease.fence, conditional=lease.conditional), lease)
            return code
        except (LeaseLost, RequestError) as error:
            code = HELD if isinstance(error, LeaseLost) else BAD_REQUEST
            raise
        finally:
            telemetry.record_end(code, output)
            with suppress(StorageError):  # then it ends by itself
                lease.release()
    except LeaseLost as error:
        print(f"error: --output {output}: {_said(error)}; nothing more is written", file=sys.stderr)
        return HELD
    except StorageError as error:
        print(f"error: {_said(error)}", file=sys.stderr)
        return FAILED


def _run(model: Model, request: Request, lease: Lease) -> int:
    """The job of the run that holds the output."""
    recorder = Recorder(request, model.labels, lease.confirm)

    def farewell() -> None:
        with suppress(StorageError, LeaseLost):
            recorder.record()
            lease.release()
        recorder.discard()

    with shutdown_hook(farewell), time_limit_exit(request.settings.time_limit, "--time-limit"):
        idle = _nothing_to_do(request, lease)
        workers = _connected(request.settings) if idle is None else (0, 0)
        join_cluster()  # also a run that finds nothing to do is to be seen
        settled = _worked(request, model, workers, recorder, lease) if idle is None else (chunk for chunk in idle)
        try:
            _write_settings(request)
            with closing(settled):
                for chunk in settled:
                    lease.confirm()
                    recorder.add(chunk)
                    telemetry.record_chunk(chunk, request.settings.output)
            summary = recorder.finish(complete=True)
        except (StorageError, RequestError) as error:
            return _give_up(recorder, error)
        except ray.exceptions.RayError:
            recorder.record()
            raise
    return _conclude(request, summary)


def _connected(settings: SegmentSettings) -> tuple[int, int]:
    """As `connected_workers`. Raises: RequestError if a machine does not see a local folder."""
    workers = connected_workers(settings)
    check_shared({"--input": settings.input}, {"--output": join(settings.output, OWN)})
    return workers


def _worked(
    request: Request, model: Model, workers: tuple[int, int], recorder: Recorder, lease: Lease
) -> Generator[Chunk, None, None]:
    """The chunks as workers settle them. Raises: StorageError if some of what was listed has not come."""
    with (
        _Progress(recorder, request),
        publish_lease(request, lease),
        telemetry.running(telemetry.SEGMENTING, output=request.settings.output),
        closing(_pipeline(request, model, workers)) as settled,
    ):
        for chunk in settled:
            yield chunk
            publish(request, "worked", recorder.worked)
        # Where a process dies that Ray begins anew, a stream may end early and without an error.
        listed, ended = lookup(request, "listed", (0, False))
        if not ended or listed != sum(recorder.counts.values()):
            raise StorageError(request.settings.input, "a process of the run was killed, not all has been done")


def _give_up(recorder: Recorder, error: Exception) -> int:
    """Says why the run ends before its end, and records what it can."""
    recorded = "what is finished is recorded"
    try:
        recorder.finish(complete=False)
    except StorageError:
        recorded = "what could not be recorded is done again"
    print(f"error: {_said(error)}; {recorded}, the same command goes on", file=sys.stderr)
    return FAILED


def _prepare(settings: SegmentSettings) -> tuple[Model, Request]:
    settings = store.with_absolute_paths(settings, "input", "output", "model", "manifest")
    for outer, inner in ((settings.input, settings.output), (settings.output, settings.input)):
        if store.contains(outer, inner):
            raise RequestError(
                f"--output {settings.output} and --input {settings.input} lie in each other; masks would be taken for "
                "images: name folders beside each other"
            )
    model = Model.load(settings.model)
    store.check_readable(settings.input, "--input")
    if settings.manifest is not None:
        check_manifest(settings.manifest)
    if not settings.dry_run:
        store.check_writable(settings.output, "--output")
    run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + secrets.token_hex(2)
    request = Request(settings, _fingerprint(settings, model), run, fence=0, window=model.window)
    try:
        return model, replace(request, fence=request.ledger.next_fence())
    except Unreachable:
        raise
    except StorageError as error:
        raise RequestError(
            f"--output {settings.output}: cannot be listed ({error.strerror}); check what you may do"
        ) from None


def _write_settings(request: Request) -> None:
    uri = join(request.settings.output, f"{OWN}runs/{request.run}/settings.yaml")
    store.write(uri, yaml.safe_dump(to_mapping(request.settings), sort_keys=False).encode())


def _fingerprint(settings: SegmentSettings, model: Model) -> str:
    predictor = Predictor(model, precision=settings.precision, tile=settings.tile, tta=settings.tta)
    decisive = predictor.fingerprint | {"outputs": settings.outputs}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _dry_run(request: Request) -> int:
    """Counts what a run would do, and why."""
    counts: dict[str, int] = {}
    for chunk in chunks(request):
        rows = chunk.rows
        verdicts = pc.binary_join_element_wise(rows["status"], pc.coalesce(rows["error"], ""), ": ")
        for count in verdicts.value_counts().to_pylist():
            verdict = count["values"].removesuffix(": ")
            counts[verdict] = counts.get(verdict, 0) + count["counts"]
        for name, number in chunk.totals.items():
            counts[name] = counts.get(name, 0) + number
    print("nothing is changed; a run would take")
    for verdict, number in sorted(counts.items()):
        print(f"{number:>12,}  {verdict.replace(TODO, 'segment')}")
    return 0


def _said(error: Exception) -> str:
    """What an error said before Ray added to it."""
    cause = getattr(error, "cause", error)
    subject = str(cause.args[0]).splitlines()[0]
    return f"{subject}: {cause.strerror}" if isinstance(cause, StorageError) else subject


def _nothing_to_do(request: Request, lease: Lease) -> list[Chunk] | None:
    """The chunks of a short listing with nothing to segment, for which no cluster need be woken; else None."""
    found: list[Chunk] = []
    seen = 0
    for chunk in chunks(request, lease.confirm):
        found.append(chunk)
        seen += len(chunk.rows)
        if seen > GLANCE or pc.any(pc.equal(chunk.rows["status"], TODO)).as_py():
            return None
    return found


def _pipeline(request: Request, model: Model, workers: tuple[int, int]) -> Generator[Chunk, None, None]:
    """Settled chunks, as they come. On one machine the steps share a process; CPUs that feed GPUs have their own."""
    given = ray.put(model)
    plan = dataset_of([None]).map_batches(
        List(request, AHEAD * workers[1]),
        batch_size=None,
        num_cpus=0,
        # The driver's machine: what is listed is lost with the machine that lists.
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    steps: list[tuple[Any, tuple[Any, ...], tuple[int, int | None], int, int]]  # with the CPUs and GPUs of a worker
    if request.settings.gpu:
        steps = [
            (Fetch, (request,), (1, None), 1, 0),
            (Predict, (request, given), workers, 0, 1),
            (Write, (request, given), (1, None), 1, 0),
        ]
    else:
        steps = [(Segment, (request, given), workers, 1, 0)]
    for step, arguments, size, cpus, gpus in steps:
        plan = plan.map_batches(
            step,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=pool(*size),
            num_cpus=cpus,
            num_gpus=gpus,
        )
    return running(plan)


class _Progress:
    """Says every few seconds how far the run is."""

    def __init__(self, recorder: Recorder, request: Request) -> None:
        self.recorder, self.request = recorder, request
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        first: tuple[float, int] | None = None
        while not self._over.wait(SECONDS_PER_LINE):
            counts, now = dict(self.recorder.counts), time.monotonic()
            settled, done = sum(counts.values()), counts.get("done", 0)
            listed, ended = lookup(self.request, "listed", (0, False))
            text = f"listed {listed:,}  done {done:,}  failed {counts.get('failed', 0):,}"
            if first is not None and done > first[1]:
                rate = (done - first[1]) / (now - first[0])
                text += f"  {rate:.1f} images/s"
                if ended:
                    text += f"  {(listed - settled) / rate / 60:.1f} minutes left"
            elif done:
                first = now, done
            print(text, flush=True)


def _conclude(request: Request, summary: dict[str, Any]) -> int:
    settings, counts = request.settings, summary["counts"]
    said = ", ".join(f"{number:,} {status.replace('_', ' ')}" for status, number in counts.items()) or "nothing listed"
    print(f"{said} in {summary['seconds']:.1f} s")
    print(f"report: {join(settings.output, OWN)}runs/{request.run}/index.html")
    failed = counts.get("failed", 0)
    if failed > settings.failures_allowed(failed + counts.get("done", 0)):
        print(f"error: {failed} objects failed, more than --max-failed {settings.max_failed}", file=sys.stderr)
        return TOO_MANY_FAILED
    return 0
