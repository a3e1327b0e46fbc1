"""Records a segmentation run: ledger parts while it goes on, then report.parquet, index.html and summary.json.

Settled rows arrive in any order, each object once. Memory does not grow with their number: rows go to files,
and of all else a bounded sample is kept. summary.json is written last; `complete` in it says that all was listed and
settled.
"""

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unet.data.drift import Drift, ImageStatistics, channel_names
from unet.data.labels import LabelSet
from unet.report.segmentation import LOST, segmentation_report
from unet.runtime.memory import return_freed_memory
from unet.segment.catalogue import CATALOGUE, shares_to_struct
from unet.segment.compaction import compact
from unet.segment.item import Item, Outcome
from unet.segment.lease import LeaseUnconfirmed
from unet.segment.ledger_part import GIVEN_COLUMNS, columns
from unet.segment.object_parts import of_image
from unet.segment.run_index import add_run
from unet.segment.run_spec import OBJECTS, RunSpec
from unet.segment.writer import THUMBNAILS
from unet.settings import RequestError
from unet.storage.faults import StorageError
from unet.storage.local import translate_errors
from unet.storage.objects import Guard, no_guard

PART_SECONDS, PART_SHARE, PART_ROWS, OBJECT_BYTES = (1.0, 3.0), 0.02, 50_000, 1 << 26
"""A ledger part is written when PART_SHARE of the run's time has passed since the one before, within the bounds of
PART_SECONDS, or when there are PART_ROWS rows, or OBJECT_BYTES of objects: a kill loses little, and a long run writes
parts less often."""

ROW_GROUP = 4_000
"""Rows of a row group of the report. The Parquet writer keeps some kilobytes of each until it is closed."""

MAX_TABLES = 64
"""Tables of a few rows that wait to be written before they become one: each takes some kilobytes."""

MAX_FAILURES_SHOWN = 200
"""Failed objects on the page."""

CURVE_POINTS = 500
"""Points of the throughput curve; up to twice as many."""

REPORT_SCHEMA = pa.schema(
    [*columns("key", "etag", "size", "status", "error", "mask_key", "mask_etag", "seconds"), *CATALOGUE]
)


class Recorder:
    """Call `add_listed` and `add_outcomes` with every object, then `finish`. Safe to share between threads.

    `guard` is called before each write, and waits until this run may write.
    """

    def __init__(
        self, spec: RunSpec, labels: LabelSet, guard: Guard = no_guard, reference: ImageStatistics | None = None
    ) -> None:
        self.spec, self.labels, self.guard = spec, labels, guard
        self._lock = threading.RLock()
        self.output = spec.output_store
        self.counts: Counter[str] = Counter()
        self.listed_counts: Counter[str] = Counter()
        """Of the objects that the listing has settled."""
        self.facts: dict[str, Any] = {"not_matched": 0, "not_looked_at": {}, "orphaned": 0, "removed": 0}
        """What summary.json says besides."""
        self.bytes = 0
        self.no_data = 0
        self.passing = 0
        """Objects that failed for what may pass, of which the ledger is told nothing."""
        """Pixels of segmented images that hold no data."""
        self._class_pixels = np.zeros(len(labels.classes), np.int64)
        self._statistics = ImageStatistics.empty(spec.channels.count, len(labels.classes))
        self._reference = reference
        self._thumbnails: list[tuple[int, str, bytes]] = []
        self._failures: list[tuple[str, str, str]] = []
        self._curve: list[tuple[float, int]] = []
        """Seconds, and objects done by then."""
        self._began = time.time()
        self.small_objects = 0
        """Objects that were left out as too small."""
        self._object_counts: Counter[str] = Counter()
        """By class."""
        self._object_parts = spec.object_parts
        self._part = self._object_parts.new_name(spec.fence)
        self._objects: list[pa.Table] = []
        self._object_bytes = 0
        self._ledger_rows: list[pa.Table] = []
        self._report_rows: list[pa.Table] = []
        self._last_flush = time.monotonic()
        self._closed = False
        self._folder = tempfile.TemporaryDirectory(prefix="unet-report-")
        self._report_path = Path(self._folder.name) / "report.parquet"
        with translate_errors(str(self._report_path)):
            schema = shares_to_struct(REPORT_SCHEMA.empty_table(), spec.classes).schema
            self._report = pq.ParquetWriter(self._report_path, schema, compression="zstd")

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.time() - self._began

    @property
    def lost(self) -> int:
        """Objects that were to be segmented and have no mask."""
        return sum(self.counts[status] for status in LOST)

    @property
    def drift(self) -> Drift | None:
        """The images of the run beside those of training; None without any, or where the model does not say."""
        if self._reference is None or not self._statistics.images:
            return None
        settings, names = self.spec.settings, channel_names(self.spec.channels.bands)
        return Drift(self._reference, self._statistics, names, settings.drift_limit, settings.drift_confidence)

    def add_listed(self, rows: pa.Table) -> None:
        """Record objects that the listing has settled: rows of its ROW_SCHEMA."""
        with self._lock:
            if self._closed:
                return  # the run has ended early, and what lists does not know yet
            for count in rows["status"].value_counts().to_pylist():
                self.counts[count["values"]] += count["counts"]
                self.listed_counts[count["values"]] += count["counts"]
            self._add_failures(rows.filter(pc.equal(rows["status"], "vanished")).to_pylist())
            self._add_report(rows.drop_columns(["mask_fence", "outputs", "there", "objects"]))

    def add_outcomes(self, outcomes: Sequence[tuple[Item, Outcome]]) -> None:
        """Record objects that workers have settled; of none now and then, or what came last waits for the next."""
        with self._lock:
            rows = [self._row(item, outcome) for item, outcome in outcomes]
            for (item, outcome), row in zip(outcomes, rows, strict=True):
                self._add_objects(outcome, row)
                self.counts[outcome.status] += 1
                self.bytes += item.size * (outcome.status == "done")
                self._class_pixels += 0 if outcome.class_pixels is None else outcome.class_pixels
                if outcome.class_pixels is not None:
                    self._statistics.add_image(outcome.histograms)
                    self._statistics.add_mask(outcome.class_pixels, outcome.confidence)
                self.no_data += outcome.no_data
                self.passing += outcome.status == "failed" and not outcome.permanent
                self._thumbnails += [] if outcome.thumbnail is None else [outcome.thumbnail]
            self._thumbnails = sorted(self._thumbnails)[:THUMBNAILS]
            self._add_failures([row for row in rows if row["status"] in LOST])
            if rows:
                self._curve.append((self.seconds, self.counts["done"]))
                self._add_report(pa.Table.from_pylist(rows, schema=REPORT_SCHEMA))
            if len(self._curve) > 2 * CURVE_POINTS:
                self._curve = self._curve[::2]
            kept = compress(rows, (outcome.status == "done" or outcome.permanent for _, outcome in outcomes))
            self._ledger_rows.append(pa.Table.from_pylist(list(kept), schema=GIVEN_COLUMNS))
            least, most = PART_SECONDS
            due = time.monotonic() - self._last_flush > min(most, max(least, PART_SHARE * self.seconds))
            if due or sum(map(len, self._ledger_rows)) > PART_ROWS or self._object_bytes > OBJECT_BYTES:
                self.flush_ledger()

    def flush_ledger(self) -> None:
        """Write the rows that the ledger has not yet."""
        with self._lock:
            if self._objects:  # before the ledger says that they are there
                self._object_parts.write(self._part, self._objects, self.guard)
            if any(map(len, self._ledger_rows)):
                self.spec.ledger.append(pa.concat_tables(self._ledger_rows), self.spec.fence, self.guard)
            self._objects, self._object_bytes = [], 0
            self._part = self._object_parts.new_name(self.spec.fence)
            self._ledger_rows, self._last_flush = [], time.monotonic()
        return_freed_memory()

    def finish(self, *, complete: bool) -> dict[str, Any]:
        """Write the report and return the summary. `complete`: all was listed and settled."""
        with self._lock, translate_errors(str(self._report_path)):
            self.flush_ledger()
            self._flush_report()
            self._report.close()
            self._closed = True
        self.compact_ledger()
        self.guard()
        self.output.put_file(f"{self.spec.folder}report.parquet", self._report_path)
        summary = self._summary(complete)
        self.guard()
        self.output.put(f"{self.spec.folder}index.html", self._page(summary))
        add_run(self.output, summary, self.guard)
        self.guard()  # what waits for summary.json finds all else
        self.output.put(f"{self.spec.folder}summary.json", json.dumps(summary, indent=1).encode())
        self.discard()
        return summary

    def compact_ledger(self) -> None:
        """Compact the ledger, and merge the objects that it names; say if that is not possible now."""
        moved: dict[str, str] = {}

        def merge(names: Iterable[str]) -> Mapping[str, str]:
            moved.update(self._object_parts.merge(names, self.guard))
            return moved

        try:
            compact(self.spec.ledger, self.spec.fence, self.guard, merge)
            self._object_parts.delete(moved, self.guard)
        except LeaseUnconfirmed:
            raise
        except RequestError:  # of a damaged part, which the listing names
            pass
        except StorageError as error:
            print(f"warning: the ledger could not be compacted ({error}); the next run does it", flush=True)

    def discard(self) -> None:
        """Delete the temporary files."""
        self._folder.cleanup()

    def _add_report(self, rows: pa.Table) -> None:
        self._report_rows.append(rows)
        if len(self._report_rows) > MAX_TABLES:
            self._report_rows = [pa.concat_tables(self._report_rows, promote_options="default").combine_chunks()]
        if sum(map(len, self._report_rows)) > ROW_GROUP:
            self._flush_report()

    def _flush_report(self) -> None:
        if self._report_rows:
            with translate_errors(str(self._report_path)):
                rows = _report_table(self._report_rows, self.spec.mask_suffix)
                self._report.write_table(shares_to_struct(rows, self.spec.classes))
        self._report_rows = []

    def _add_objects(self, outcome: Outcome, row: Mapping[str, Any]) -> None:
        if outcome.objects is not None:
            self._objects.append(of_image(outcome.objects, row))
            self._object_bytes += self._objects[-1].nbytes
            for count in outcome.objects["class"].value_counts().to_pylist():
                self._object_counts[count["values"]] += count["counts"]
            self.small_objects += outcome.small_objects

    def _add_failures(self, rows: Sequence[Mapping[str, Any]]) -> None:
        room = MAX_FAILURES_SHOWN - len(self._failures)
        self._failures += [(row["key"], row["status"], row["error"] or "") for row in rows[:room]]

    def _row(self, item: Item, outcome: Outcome) -> dict[str, Any]:
        """Return what the report and the ledger say of an object."""
        written = {*item.outputs.split(","), *item.there.split(",")} - {"", OBJECTS}
        same_mask = outcome.status != "done" or "mask" not in item.outputs.split(",")
        pixels = outcome.class_pixels
        shares = None if pixels is None or not pixels.any() else (pixels / pixels.sum()).tolist()
        return {
            "key": item.key,
            "etag": item.etag,
            "size": item.size,
            "status": outcome.status,
            "error": outcome.error,
            "mask_etag": outcome.mask_etag or item.mask_etag,
            "mask_fence": item.mask_fence if same_mask else self.spec.fence,
            "seconds": outcome.seconds,
            "fingerprint": self.spec.fingerprint if outcome.status == "done" else self.spec.failed_fingerprints[0],
            "outputs": ",".join(sorted(written)),
            "objects": self._part if outcome.objects is not None else item.objects if same_mask else None,
            "input": self.spec.input,
            **dict(zip(("height", "width", "channels"), outcome.size, strict=False)),
            "confidence": outcome.confidence,
            "unsure": outcome.unsure,
            "shares": shares,
        }

    def _summary(self, complete: bool) -> dict[str, Any]:
        seconds = self.seconds
        pixels = int(self._class_pixels.sum())
        return {
            "format": 1,
            "run": self.spec.run,
            "fence": self.spec.fence,
            "complete": complete,
            "input": self.spec.settings.input,
            "output": self.spec.settings.output,
            "model": self.spec.settings.model,
            "model_digest": self.spec.model_digest,
            "fingerprint": self.spec.fingerprint,
            "listed": sum(self.counts.values()),
            "counts": dict(sorted(self.counts.items())),
            **self.facts,
            "bytes": self.bytes,
            "no_data_pixels": self.no_data,
            "objects": {name: self._object_counts[name] for name in self.spec.settings.object_classes},
            "small_objects": self.small_objects,
            "seconds": round(seconds, 3),
            "images_per_second": self.counts["done"] / seconds,
            "class_shares": {
                name: count / max(1, pixels)
                for name, count in zip(self.labels.names, self._class_pixels.tolist(), strict=True)
            },
            "drift": None if self.drift is None else self.drift.to_json(),
        }

    def _page(self, summary: dict[str, Any]) -> bytes:
        return segmentation_report(
            summary,
            labels=self.labels,
            class_pixels=self._class_pixels.tolist(),
            drift=self.drift,
            throughput=self._curve,
            thumbnails=[(key, jpeg) for _, key, jpeg in self._thumbnails],
            failures=self._failures,
        )


def _report_table(tables: Sequence[pa.Table], suffix: str) -> pa.Table:
    rows = pa.concat_tables([REPORT_SCHEMA.empty_table(), *tables], promote_options="default")
    has_mask = pc.is_in(rows["status"], pa.array(["done", "unchanged"]))
    masks = pc.binary_join_element_wise(rows["key"], suffix, "")
    masks = pc.if_else(has_mask, masks, pa.scalar(None, pa.string()))
    return rows.set_column(REPORT_SCHEMA.get_field_index("mask_key"), "mask_key", masks)
