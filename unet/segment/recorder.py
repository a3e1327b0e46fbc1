"""Records a segmentation run: ledger parts while it goes on, then report.parquet, index.html and summary.json.

Settled rows arrive in chunks, in any order, each object once. Memory does not grow with their number: rows go to files,
and of all else a bounded sample is kept. summary.json is written last; `complete` in it says that all was listed and
settled.
"""

import json
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unet.data.labels import LabelSet
from unet.report.segmentation import Thumbnail, segmentation_report
from unet.segment.chunk import Chunk
from unet.segment.run_spec import RunSpec, mask_key
from unet.segment.segmenter import THUMBNAILS
from unet.storage.local import translate_errors
from unet.storage.objects import Guard, no_guard

PART_SECONDS, PART_SHARE, PART_ROWS = (1.0, 5.0), 0.02, 50_000
"""A ledger part is written when PART_SHARE of the run's time has passed since the one before, within the bounds of
PART_SECONDS, or when there are PART_ROWS rows: a kill loses little, and a long run writes parts less often."""

ROW_GROUP = 10_000
"""Rows of a row group of the report. The Parquet writer keeps some kilobytes of each until it is closed."""

MAX_FAILURES_SHOWN = 200
"""Failed objects on the page."""

CURVE_POINTS = 500
"""Points of the throughput curve; up to twice as many."""

NOT_DONE = pa.array(["failed", "changed", "vanished"])
"""Statuses of objects that were to be segmented and have no mask."""

REPORT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("mask_key", pa.string()),
        ("mask_etag", pa.string()),
        ("seconds", pa.float64()),
    ]
)


class Recorder:
    """Call `add_chunk` with every chunk, then `finish`. Other threads may call `flush_ledger` at any time.

    `guard` is called before each write, and waits until this run may write.
    """

    def __init__(self, spec: RunSpec, labels: LabelSet, guard: Guard = no_guard) -> None:
        self.spec, self.labels, self.guard = spec, labels, guard
        self._lock = threading.RLock()
        self.output = spec.output_store
        self.counts: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.bytes = 0
        self._class_pixels = np.zeros(len(labels.classes), np.int64)
        self._thumbnails: list[tuple[int, str, bytes]] = []
        self._failures: list[tuple[str, str, str]] = []
        self._curve: list[tuple[float, int]] = []
        """Seconds, and objects done by then."""
        self._began = time.time()
        self._ledger_rows: list[pa.Table] = []
        self._report_rows: list[pa.Table] = []
        self._last_flush = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="unet-report-")
        self._report_path = Path(self._folder.name) / "report.parquet"
        with translate_errors(str(self._report_path)):
            self._report = pq.ParquetWriter(self._report_path, REPORT_SCHEMA, compression="zstd")

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.time() - self._began

    @property
    def processed(self) -> int:
        """Objects that workers have settled."""
        return sum(self.counts[status] for status in ("done", "failed", "changed", "vanished"))

    def add_chunk(self, chunk: Chunk) -> None:
        """Record a settled chunk."""
        with self._lock:
            rows = chunk.rows
            done = pc.equal(rows["status"], "done")
            self.totals += chunk.totals
            for count in rows["status"].value_counts().to_pylist():
                self.counts[count["values"]] += count["counts"]
            self.bytes += pc.sum(rows.filter(done)["size"]).as_py() or 0
            if chunk.class_pixels is not None:
                self._class_pixels += chunk.class_pixels
            self._thumbnails = sorted(self._thumbnails + chunk.thumbnails)[:THUMBNAILS]
            self._add_failures(rows)
            self._curve.append((self.seconds, self.counts["done"]))
            if len(self._curve) > 2 * CURVE_POINTS:
                self._curve = self._curve[::2]
            self._report_rows.append(rows)
            if sum(map(len, self._report_rows)) > ROW_GROUP:
                self._flush_report()
            self._ledger_rows.append(rows.filter(pc.or_kleene(done, rows["permanent"])))
            least, most = PART_SECONDS
            due = time.monotonic() - self._last_flush > min(most, max(least, PART_SHARE * self.seconds))
            if due or sum(map(len, self._ledger_rows)) > PART_ROWS:
                self.flush_ledger()

    def flush_ledger(self) -> None:
        """Write the rows that the ledger has not yet."""
        with self._lock:
            if any(map(len, self._ledger_rows)):
                spec, rows = self.spec, pa.concat_tables(self._ledger_rows)
                done = pc.equal(rows["status"], "done")
                fingerprints = pc.if_else(done, pa.scalar(spec.fingerprint), pa.scalar(spec.failed_fingerprint))
                part = rows.select(["key", "etag", "size", "status", "error", "mask_etag"])
                self.guard()
                spec.ledger.append(part.append_column("fingerprint", fingerprints), spec.fence)
            self._ledger_rows, self._last_flush = [], time.monotonic()

    def finish(self, *, complete: bool) -> dict[str, Any]:
        """Write the report and return the summary. `complete`: all was listed and settled."""
        self.flush_ledger()
        self._flush_report()
        with translate_errors(str(self._report_path)):
            self._report.close()
        self.guard()
        if complete:
            self.spec.ledger.compact(self.spec.fence)
        self.output.put_file(f"{self.spec.folder}report.parquet", self._report_path)
        summary = self._summary(complete)
        files = {"index.html": self._page(summary), "summary.json": json.dumps(summary, indent=1).encode()}
        for name, data in files.items():
            self.guard()
            self.output.put(self.spec.folder + name, data)
        self.discard()
        return summary

    def discard(self) -> None:
        """Delete the temporary files."""
        self._folder.cleanup()

    def _flush_report(self) -> None:
        if self._report_rows:
            with translate_errors(str(self._report_path)):
                self._report.write_table(_report_table(pa.concat_tables(self._report_rows)))
        self._report_rows = []

    def _add_failures(self, rows: pa.Table) -> None:
        if (room := MAX_FAILURES_SHOWN - len(self._failures)) > 0:
            failures = rows.filter(pc.is_in(rows["status"], NOT_DONE)).slice(0, room).to_pylist()
            self._failures += [(row["key"], row["status"], row["error"] or "") for row in failures]

    def _summary(self, complete: bool) -> dict[str, Any]:
        seconds = self.seconds
        pixels = int(self._class_pixels.sum())
        return {
            "format": 1,
            "run": self.spec.run,
            "complete": complete,
            "input": self.spec.settings.input,
            "output": self.spec.settings.output,
            "model": self.spec.settings.model,
            "fingerprint": self.spec.fingerprint,
            "listed": sum(self.counts.values()),
            "counts": dict(sorted(self.counts.items())),
            "not_matched": self.totals["not_matched"],
            "orphaned": self.totals["orphaned"],
            "removed": self.totals["removed"],
            "bytes": self.bytes,
            "seconds": round(seconds, 3),
            "images_per_second": self.counts["done"] / seconds,
            "class_shares": {
                name: count / max(1, pixels)
                for name, count in zip(self.labels.names, self._class_pixels.tolist(), strict=True)
            },
        }

    def _page(self, summary: dict[str, Any]) -> bytes:
        facts = {
            "Input": summary["input"],
            "Output": summary["output"],
            "Model": summary["model"],
            "Listed": f"{summary['listed']:,}",
            "Names that do not match": f"{summary['not_matched']:,}",
            "Masks without an image": f"{summary['orphaned']:,}",
            "Masks removed": f"{summary['removed']:,}",
            "Read": f"{self.bytes / 1e6:,.1f} MB",
            "Time": f"{summary['seconds']:,.1f} s",
        }
        return segmentation_report(
            title=self.spec.run,
            facts=facts,
            counts=summary["counts"],
            images_per_second=summary["images_per_second"] if self.counts["done"] else None,
            labels=self.labels,
            class_pixels=self._class_pixels.tolist(),
            throughput=self._curve,
            thumbnails=[Thumbnail(key=key, jpeg=jpeg) for _, key, jpeg in self._thumbnails],
            failures=self._failures,
            failures_total=sum(self.counts[status] for status in NOT_DONE.to_pylist()),
        )


def _report_table(rows: pa.Table) -> pa.Table:
    keys = rows["key"].to_pylist()
    has_mask = pc.is_in(rows["status"], pa.array(["done", "unchanged"]))
    masks = pc.if_else(has_mask, pa.array([mask_key(key) for key in keys], pa.string()), pa.scalar(None, pa.string()))
    return rows.append_column("mask_key", masks).select(REPORT_SCHEMA.names).cast(REPORT_SCHEMA)
