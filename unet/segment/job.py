"""The segmentation job: checks its settings, runs the pipeline on Ray Data, records what was done.

The pipeline has two steps: List, then Segment, which fetches, decodes, predicts, encodes and writes. A chunk of objects
travels through it as one row, which is neither merged with others nor cut, and the first chunks are segmented while the
listing goes on. The driver records the settled objects, a few hundred bytes for each, in files.
"""

import hashlib
import json
import secrets
import sys
import time
from collections import Counter
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
from unet.runtime.background import repeat
from unet.runtime.pipeline import connect_workers, dataset_of, process_rows, stream
from unet.runtime.session import check_shared, join_cluster
from unet.runtime.stop import shutdown_hook, time_limit
from unet.segment.chunk import TODO, Chunk
from unet.segment.lease import Lease, LeaseLost, acquire
from unet.segment.lease_guard import publish_lease
from unet.segment.listing import MAX_CHUNK, list_chunks
from unet.segment.manifest import check_manifest
from unet.segment.recorder import Recorder
from unet.segment.run_spec import INTERNAL, LEASE_KEY, RunSpec
from unet.segment.run_store import lookup, publish
from unet.segment.settings import SegmentSettings
from unet.segment.steps import List, Segment
from unet.settings import ExitCode, RequestError, to_mapping
from unet.storage import store
from unet.storage.faults import StorageError, Unreachable
from unet.storage.objects import join_uri

MAX_LISTED_WITHOUT_CLUSTER = 20_000
"""Objects that are listed before the job connects to a cluster."""

LOOKAHEAD = 8 * MAX_CHUNK
"""Objects for each worker that are listed before the first of them is done: they wait in the driver's memory."""

PROGRESS_SECONDS = 5.0
"""Seconds between two lines about the progress."""


def segment(settings: SegmentSettings) -> int:
    """Run the job; return its exit code. Raise RequestError before a worker starts if the settings cannot be right."""
    model, spec = _prepare(settings)
    if settings.dry_run:
        return _dry_run(spec)
    output = spec.settings.output
    try:
        lease = acquire(output, LEASE_KEY, run=spec.run, lifetime=settings.lease, fence=spec.fence)
        code: int = ExitCode.UNEXPECTED
        try:
            code = _run(model, replace(spec, fence=lease.fence, conditional=lease.conditional), lease)
            return code
        except (LeaseLost, RequestError) as error:
            code = ExitCode.OUTPUT_HELD if isinstance(error, LeaseLost) else ExitCode.BAD_REQUEST
            raise
        finally:
            telemetry.record_end(code, output)
            with suppress(StorageError):  # it expires by itself
                lease.release()
    except LeaseLost as error:
        print(f"error: --output {output}: {_message(error)}; nothing more is written", file=sys.stderr)
        return ExitCode.OUTPUT_HELD
    except StorageError as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        return ExitCode.UNEXPECTED


def _run(model: Model, spec: RunSpec, lease: Lease) -> int:
    """Run the job, once the lease of the output is held."""
    recorder = Recorder(spec, model.labels, lease.confirm)

    def record_and_release() -> None:
        with suppress(StorageError, LeaseLost):
            recorder.flush_ledger()
            lease.release()
        recorder.discard()

    with shutdown_hook(record_and_release), time_limit(spec.settings.time_limit, "--time-limit"):
        idle = _list_without_cluster(spec, lease)
        workers = _connect(spec.settings) if idle is None else (0, 0)
        join_cluster()  # for the metrics of a run that has nothing to do
        settled = _process(spec, model, workers, recorder, lease) if idle is None else (chunk for chunk in idle)
        try:
            _write_settings(spec)
            with closing(settled):
                for chunk in settled:
                    lease.confirm()
                    recorder.add_chunk(chunk)
                    _record_metrics(chunk, spec.settings.output)
            summary = recorder.finish(complete=True)
        except (StorageError, RequestError) as error:
            return _end_early(recorder, error)
        except ray.exceptions.RayError:
            recorder.flush_ledger()
            raise
    return _print_summary(spec, summary)


def _record_metrics(chunk: Chunk, output: str) -> None:
    """Export the metrics of a settled chunk."""
    done = chunk.rows.filter(pc.equal(chunk.rows["status"], "done"))
    counts = {count["values"]: count["counts"] for count in chunk.rows["status"].value_counts().to_pylist()}
    seconds = {stage: total / len(done) for stage, total in chunk.stage_seconds.items()} if len(done) else {}
    telemetry.record_objects(counts, pc.sum(done["size"]).as_py() or 0, seconds, output)


def _connect(settings: SegmentSettings) -> tuple[int, int]:
    """As `connect_workers`. Raise RequestError if a machine does not see a local folder."""
    workers = connect_workers(settings)
    check_shared({"--input": settings.input}, {"--output": join_uri(settings.output, INTERNAL)})
    return workers


def _process(
    spec: RunSpec, model: Model, workers: tuple[int, int], recorder: Recorder, lease: Lease
) -> Generator[Chunk, None, None]:
    """Yield the chunks as workers settle them. Raise StorageError if some that were listed have not come."""
    with (
        repeat(_Progress(recorder, spec).print_line, PROGRESS_SECONDS),
        publish_lease(spec, lease),
        telemetry.running_gauge(telemetry.SEGMENTING, output=spec.settings.output),
        closing(_pipeline(spec, model, workers)) as settled,
    ):
        for chunk in settled:
            yield chunk
            publish(spec, "processed", recorder.processed)
        # Where Ray restarts a process that died, the stream may end early without an error.
        listed, ended = lookup(spec, "listed", (0, False))
        if not ended or listed != sum(recorder.counts.values()):
            raise StorageError(spec.settings.input, "a process of the run was killed, not all has been done")


def _end_early(recorder: Recorder, error: Exception) -> int:
    """Record what is finished, and print why the run ends early."""
    recorded = "what is finished is recorded"
    try:
        recorder.finish(complete=False)
    except StorageError:
        recorded = "what could not be recorded is done again"
    print(f"error: {_message(error)}; {recorded}, the same command goes on", file=sys.stderr)
    return ExitCode.UNEXPECTED


def _prepare(settings: SegmentSettings) -> tuple[Model, RunSpec]:
    """Check the settings, and decide all that is the same for every process of the run. Raise RequestError."""
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
    spec = RunSpec(settings, _fingerprint(settings, model), run, fence=0, window=model.window)
    try:
        return model, replace(spec, fence=spec.ledger.next_fence())
    except Unreachable:
        raise
    except StorageError as error:
        raise RequestError(
            f"--output {settings.output}: cannot be listed ({error.strerror}); check what you may do"
        ) from None


def _write_settings(spec: RunSpec) -> None:
    uri = join_uri(spec.settings.output, f"{spec.folder}settings.yaml")
    store.write(uri, yaml.safe_dump(to_mapping(spec.settings), sort_keys=False).encode())


def _fingerprint(settings: SegmentSettings, model: Model) -> str:
    predictor = Predictor(model, precision=settings.precision, tile=settings.tile, tta=settings.tta)
    decisive = predictor.fingerprint | {"outputs": settings.outputs}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _dry_run(spec: RunSpec) -> int:
    """Print how many objects a run would segment, and why."""
    counts: Counter[str] = Counter()
    for chunk in list_chunks(spec):
        statuses = pc.binary_join_element_wise(chunk.rows["status"], pc.coalesce(chunk.rows["error"], ""), ": ")
        for count in statuses.value_counts().to_pylist():
            counts[count["values"].removesuffix(": ")] += count["counts"]
        counts.update(chunk.totals)
    print("nothing is changed; a run would take")
    for status, number in sorted(counts.items()):
        print(f"{number:>12,}  {status.replace(TODO, 'segment')}")
    return 0


def _message(error: Exception) -> str:
    """Return the message of an error without what Ray adds to it."""
    cause = getattr(error, "cause", error)
    subject = str(cause.args[0]).splitlines()[0]
    return f"{subject}: {cause.strerror}" if isinstance(cause, StorageError) else subject


def _list_without_cluster(spec: RunSpec, lease: Lease) -> list[Chunk] | None:
    """Return all chunks if the listing is short and nothing is to be segmented; else None."""
    chunks: list[Chunk] = []
    for chunk in list_chunks(spec, lease.confirm):
        chunks.append(chunk)
        listed = sum(len(chunk.rows) for chunk in chunks)
        if listed > MAX_LISTED_WITHOUT_CLUSTER or pc.any(pc.equal(chunk.rows["status"], TODO)).as_py():
            return None
    return chunks


def _pipeline(spec: RunSpec, model: Model, workers: tuple[int, int]) -> Generator[Chunk, None, None]:
    """Yield settled chunks as they come."""
    listing = dataset_of([None]).map_batches(
        List(spec, LOOKAHEAD * workers[1]),
        batch_size=None,
        num_cpus=0,
        # On the driver's machine: with the machine that lists, the rest of the listing would be lost.
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    segmenting = process_rows(listing, Segment, (spec, ray.put(model)), workers, gpu=spec.settings.gpu)
    return stream(segmenting)


class _Progress:
    """Prints how far the run is. Rates count from the first line with images done on."""

    def __init__(self, recorder: Recorder, spec: RunSpec) -> None:
        self.recorder, self.spec = recorder, spec
        self._first: tuple[float, int] | None = None

    def print_line(self) -> None:
        counts, now = dict(self.recorder.counts), time.monotonic()
        settled, done = sum(counts.values()), counts.get("done", 0)
        listed, ended = lookup(self.spec, "listed", (0, False))
        text = f"listed {listed:,}  done {done:,}  failed {counts.get('failed', 0):,}"
        if self._first is not None and done > self._first[1]:
            rate = (done - self._first[1]) / (now - self._first[0])
            text += f"  {rate:.1f} images/s"
            if ended:
                text += f"  {(listed - settled) / rate / 60:.1f} minutes left"
        elif done:
            self._first = now, done
        print(text, flush=True)


def _print_summary(spec: RunSpec, summary: dict[str, Any]) -> int:
    """Print how the run ended; return its exit code."""
    settings, counts = spec.settings, summary["counts"]
    text = ", ".join(f"{number:,} {status.replace('_', ' ')}" for status, number in counts.items()) or "nothing listed"
    print(f"{text} in {summary['seconds']:.1f} s")
    print(f"report: {join_uri(settings.output, spec.folder)}index.html")
    failed = counts.get("failed", 0)
    if failed > settings.failures_allowed(failed + counts.get("done", 0)):
        print(f"error: {failed} objects failed, more than --max-failed {settings.max_failed}", file=sys.stderr)
        return ExitCode.TOO_MANY_FAILED
    return 0
