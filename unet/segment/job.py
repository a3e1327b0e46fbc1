"""The segmentation job: checks its settings, lists the input, has workers segment what is new, records what was done.

A thread of the driver lists; what the ledger settles goes from there to the recorder. Only what is to be segmented
meets workers: a run with nothing to do starts none.
"""

import gc
import json
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
import ray
import yaml

from unet.model.artifact import Model
from unet.model.int8 import check_int8
from unet.model.predictor import GPU_BATCH_SIZE
from unet.report.drift import describe_drift
from unet.report.segmentation import describe_endings
from unet.runtime import telemetry
from unet.runtime.background import repeat
from unet.runtime.memory import share_freed_memory
from unet.runtime.pool import TaskQueue, WorkerPool, connect_workers
from unet.runtime.session import check_shared, join_cluster
from unet.runtime.stop import shutdown_hook, time_limit
from unet.segment.deletion import delete_masks, refusal
from unet.segment.dry_run import dry_run
from unet.segment.fingerprint import fingerprints
from unet.segment.item import STAGES, Item, Outcome
from unet.segment.lease import Lease, LeaseLost, acquire
from unet.segment.listing import TODO, Listing, items_of
from unet.segment.model_record import record_model
from unet.segment.preview import preview
from unet.segment.recorder import Recorder
from unet.segment.run_spec import FORCE_KEY, FORMAT_KEY, INTERNAL, LEASE_KEY, RunSpec, recorded_format
from unet.segment.settings import SegmentSettings
from unet.segment.verdict import CRASHED, FaultCounter, TooManyLost, check_listed, check_lost
from unet.segment.worker import SegmentWorker
from unet.settings import ExitCode, RequestError, to_mapping
from unet.storage import store
from unet.storage.faults import StorageError, Unreachable, Vanished
from unet.storage.objects import join_uri

MAX_WAITING, FEW = 4_000, 500
"""Objects that are listed before the first of them is done, as they wait in the driver's memory, and how many more are
added to them at a time."""

PROGRESS_SECONDS = 5.0
"""Seconds between two lines about the progress."""


def segment(settings: SegmentSettings) -> int:
    """Run the job; return its exit code.

    Raises:
        RequestError: the settings cannot be right; before a worker starts.
        StorageError: before the run began, or of the driver's own temporary files.
    """
    share_freed_memory()
    model, spec = _prepare(settings)
    if settings.dry_run:
        return dry_run(model, replace(spec, forced_since=_forced_since(spec)))
    if settings.preview is not None:
        return preview(model, spec)
    output, profile = spec.settings.output, settings.output_profile
    try:
        lease = acquire(output, LEASE_KEY, run=spec.run, lifetime=settings.lease, fence=spec.fence, profile=profile)
        code: int = ExitCode.UNEXPECTED
        try:
            fence = max(lease.fence, spec.ledger.next_fence())  # a run may have ended since it was first looked up
            code = _run(model, replace(spec, fence=fence, conditional=lease.conditional), lease)
            return code
        except (LeaseLost, RequestError) as error:
            code = ExitCode.OUTPUT_HELD if isinstance(error, LeaseLost) else ExitCode.BAD_REQUEST
            raise
        finally:
            telemetry.record_end(code, output)
            with suppress(StorageError):  # it expires by itself
                lease.release()
    except LeaseLost as error:
        print(f"error: --output {output}: {error}; nothing more is written", file=sys.stderr)
        return ExitCode.OUTPUT_HELD


def _run(model: Model, spec: RunSpec, lease: Lease) -> int:
    """Run the job, once the lease of the output is held."""
    recorder = Recorder(spec, model.labels, lease.confirm, model.reference)

    def record_and_release() -> None:
        with suppress(StorageError, LeaseLost):
            recorder.flush_ledger()
            lease.release()
        recorder.discard()

    with shutdown_hook(record_and_release), time_limit(spec.settings.time_limit, "--time-limit"):
        try:
            refused = _process(model, replace(spec, forced_since=_forced_since(spec)), recorder, lease)
            summary = recorder.finish(complete=True)
        except (StorageError, RequestError, TooManyLost) as error:
            return _end_early(recorder, error)
        except Exception:
            with suppress(StorageError, LeaseLost):
                recorder.flush_ledger()
            raise
    return _print_summary(spec, summary, refused)


def _process(model: Model, spec: RunSpec, recorder: Recorder, lease: Lease) -> str | None:
    """Settle every object of the input. Return why masks that were to be deleted were not, if so.

    Raises:
        StorageError, RequestError, TooManyLost: the run ends early.
    """
    settings = spec.settings
    recorder.compact_ledger()  # what interrupted runs have left
    lease.confirm()
    described = yaml.safe_dump(to_mapping(settings), sort_keys=False)
    spec.output_store.put(f"{spec.folder}settings.yaml", described.encode())
    record_model(spec, model)
    if settings.mask_format != "png":
        spec.output_store.put(FORMAT_KEY, settings.mask_format.encode())
    listing, queue = Listing(spec), TaskQueue(MAX_WAITING)
    threading.Thread(target=_list, args=(listing, recorder, queue), daemon=True).start()
    with repeat(_Progress(recorder, listing, queue).print_line, PROGRESS_SECONDS):
        try:
            queue.wait()
            if not queue.ended:
                _segment_all(model, spec, recorder, lease, queue)
        finally:
            queue.close()
    join_cluster()  # for the metrics of a run that has nothing to do
    telemetry.record_objects(recorder.listed_counts, 0, {}, settings.output)
    recorder.facts |= listing.facts
    check_listed(spec, listing, recorder)
    lease.confirm()
    if settings.force and listing.ended and not recorder.passing:
        spec.output_store.put(FORCE_KEY, json.dumps({"since": None}).encode())
    check_lost(settings, recorder.counts, ended=True)
    if settings.object_classes and listing.ended:
        spec.object_parts.delete_unnamed(listing.named_parts, spec.fence, lease.confirm)
    if not settings.prune or (refused := refusal(spec, listing)) is not None:
        return refused if settings.prune else None
    recorder.facts |= {"orphaned": 0, "removed": delete_masks(spec, listing.orphans(), lease.confirm)}
    return None


def _list(listing: Listing, recorder: Recorder, queue: TaskQueue) -> None:
    """Record what the listing settles, and queue the other objects: a thread of the driver."""
    gc.freeze()  # collections would go through all loaded modules, again and again
    try:
        for rows in listing.tables():
            todo = pc.equal(rows["status"], TODO)
            recorder.add_listed(rows.filter(pc.invert(todo)))
            for few in rows.filter(todo).to_batches(max_chunksize=FEW):
                queue.put(items_of(few))
    except BaseException as error:  # raised where tasks are taken
        queue.close(error)
    else:
        queue.close()


def _segment_all(model: Model, spec: RunSpec, recorder: Recorder, lease: Lease, queue: TaskQueue) -> None:
    """Have workers segment what is queued. Raise as `_process`."""
    settings = spec.settings
    workers = connect_workers(settings)
    check_shared({"--input": settings.input}, {"--output": join_uri(settings.output, INTERNAL)})
    held = 2 * (settings.batch_size or (GPU_BATCH_SIZE if settings.gpu else 1))
    arguments = spec, ray.put(model)
    pool = WorkerPool(SegmentWorker, arguments, workers, gpu=settings.gpu, least_held=held, message=lease.seconds_left)
    faults = FaultCounter(spec)
    with (
        shutdown_hook(pool.stop),  # before the lease is released
        telemetry.running_gauge(telemetry.SEGMENTING, output=settings.output),
        closing(pool.process(queue)) as results,
    ):
        for settled in results:
            lease.confirm()
            outcomes = [(item, result or Outcome("failed", CRASHED, permanent=True)) for item, result in settled]
            recorder.add_outcomes(outcomes)
            record_metrics(outcomes, settings.output)
            if (drift := recorder.drift) is not None:
                telemetry.record_drift(drift.indices, drift.confidence_fall, settings.output)
            faults.add(outcomes)
            check_lost(settings, recorder.counts, ended=False)
    faults.check(max(1, recorder.lost + recorder.counts["done"]))  # as all that there are have met it


def record_metrics(outcomes: Sequence[tuple[Item, Outcome]], output: str) -> None:
    """Export the metrics of settled objects."""
    done = [(item, outcome) for item, outcome in outcomes if outcome.status == "done"]
    seconds = {
        stage: sum(outcome.stage_seconds.get(stage, 0.0) for _, outcome in done) / len(done) for stage in STAGES if done
    }
    counts = Counter(outcome.status for _, outcome in outcomes)
    telemetry.record_objects(counts, sum(item.size for item, _ in done), seconds, output)


def _end_early(recorder: Recorder, error: Exception) -> int:
    """Record what is finished, and print why the run ends early; return its exit code."""
    recorded = "what is finished is recorded"
    try:
        recorder.finish(complete=False)
    except StorageError:
        recorded = "what could not be recorded is done again"
    again = "" if isinstance(error, RequestError) else ", the same command goes on"
    print(f"error: {error}; {recorded}{again}", file=sys.stderr)
    if isinstance(error, TooManyLost):
        return ExitCode.TOO_MANY_FAILED
    return ExitCode.BAD_REQUEST if isinstance(error, RequestError) else ExitCode.UNEXPECTED


def _prepare(settings: SegmentSettings) -> tuple[Model, RunSpec]:
    """Check the settings, and decide all that is the same for every process of the run. Raise RequestError."""
    settings = store.with_absolute_paths(settings, "input", "output", "model", "manifest")
    run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + secrets.token_hex(2)
    images = store.open_store(settings.input, profile=settings.input_profile)
    masks = store.open_store(settings.output, profile=settings.output_profile)
    if store.contains(images, masks) or store.contains(masks, images):
        raise RequestError(
            f"--output {settings.output} and --input {settings.input} lie in each other; masks would be taken for "
            "images: name folders beside each other"
        )
    store.check_readable(settings.model, "--model")  # which does not wait as long for a server
    model = Model.load(settings.model)
    if settings.precision == "int8":
        check_int8(model.int8, flag=f"--model {settings.model}")
    settings.check_classes(model.labels.names)
    store.check_readable(settings.input, "--input", settings.input_profile)
    fingerprint, earlier = fingerprints(settings, model)
    spec = RunSpec(
        settings,
        fingerprint,
        run,
        fence=0,
        model_digest=model.digest,
        channels=model.channels,
        classes=model.labels.names,
        earlier=earlier,
    )
    if spec.manifest is not None:
        spec.manifest.check()
    if not settings.dry_run and settings.preview is None:
        store.check_writable(settings.output, "--output", settings.output_profile)
    try:
        spec = replace(spec, fence=spec.ledger.next_fence())
        _check_mask_format(spec)
        return model, spec
    except Unreachable:
        raise
    except StorageError as error:
        raise RequestError(
            f"--output {settings.output}: cannot be listed ({error.strerror}); check what you may do"
        ) from None


def _check_mask_format(spec: RunSpec) -> None:
    """Raise RequestError if the output holds masks in another format than --mask-format."""
    wanted = spec.settings.mask_format
    there = recorded_format(spec.output_store) or ("png" if spec.fence > 1 else wanted)
    if there != wanted:
        raise RequestError(
            f"--mask-format {wanted}: --output {spec.settings.output} holds masks in {there}; give another"
        )


def _forced_since(spec: RunSpec) -> int | None:
    """With --force: return the fence of the run that began to segment everything anew, and make it known."""
    if not spec.settings.force:
        return None
    output, since = spec.output_store, None
    with suppress(Vanished, ValueError, KeyError):
        since = json.loads(output.get(FORCE_KEY))["since"]
    if since is None and not spec.settings.dry_run:
        output.put(FORCE_KEY, json.dumps({"since": spec.fence}).encode())
    return spec.fence if since is None else int(since)


class _Progress:
    """Prints how far the run is. Rates count from the first line with images done on."""

    def __init__(self, recorder: Recorder, listing: Listing, queue: TaskQueue) -> None:
        self.recorder, self.listing, self.queue = recorder, listing, queue
        self._first: tuple[float, int] | None = None

    def print_line(self) -> None:
        counts, now = dict(self.recorder.counts), time.monotonic()
        listed, done = self.listing.listed, counts.get("done", 0)
        text = f"listed {listed:,}  done {done:,}  failed {counts.get('failed', 0):,}"
        if self._first is not None and done > self._first[1]:
            rate = (done - self._first[1]) / (now - self._first[0])
            text += f"  {rate:.1f} images/s"
            if self.queue.closed:
                text += f"  {(listed - sum(counts.values())) / rate / 60:.1f} minutes left"
        elif done:
            self._first = now, done
        print(text, flush=True)


def _print_summary(spec: RunSpec, summary: dict[str, Any], refused: str | None) -> int:
    """Print how the run ended; return its exit code."""
    settings, counts = spec.settings, summary["counts"]
    text = ", ".join(f"{number:,} {status.replace('_', ' ')}" for status, number in counts.items()) or "nothing listed"
    print(f"{text} in {summary['seconds']:.1f} s")
    if summary["not_looked_at"]:
        print(f"files not looked at: {describe_endings(summary['not_matched'], summary['not_looked_at'])}")
    if counts.get("done"):
        print(f"drift: {describe_drift(summary['drift'])}")
        telemetry.record_drifted((summary["drift"] or {}).get("drifted", ()), settings.output)
    print(f"report: {join_uri(settings.output, spec.folder)}index.html")
    if refused is not None:
        print(f"error: {refused}", file=sys.stderr)
        return ExitCode.BAD_REQUEST
    return 0
