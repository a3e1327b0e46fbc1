"""What a segmentation run leaves behind: ledger parts as work finishes, then report.parquet, summary.json and the page.

Rows arrive in chunks, in any order, each object once. Memory does not grow with their number: rows go to files, and of
the rest only a bounded sample is kept. summary.json is written last; `complete` in it marks a run that came to its end.
"""

import json
import mimetypes
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unet.data.labels import LabelSet
from unet.report.segmentation import Sheet, segmentation_report
from unet.segment.listing import OWN, Chunk, Request, mask_key
from unet.segment.segmenter import SHEETS
from unet.storage.local import translate_errors

PART_SECONDS, PART_SHARE, PART_ROWS = (1.0, 5.0), 0.02, 50_000
"""A ledger part is written when its oldest row is as old as this share of the run, within these bounds, or when it has
this many: a kill costs little, and long runs do not leave parts without end."""

GROUP_ROWS = 10_000
"""Rows of a row group of the report; the writer remembers some kilobytes of each to its end."""

FAILURES_SHOWN = 200

MOMENTS = 500
"""Points of the throughput curve, at most twice as many."""

REPORT = pa.schema(
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
    """Call `add` with every chunk, then `finish`; `record` may be called from another thread at any time.

    `guard` is called before each write, and returns once this run may write.
    """

    def __init__(self, request: Request, labels: LabelSet, guard: Callable[[], None] = lambda: None) -> None:
        self.request, self.labels, self.guard = request, labels, guard
        self._lock = threading.RLock()
        self.target = request.target
        self.counts: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.bytes = 0
        self._class_pixels = np.zeros(len(labels.classes), np.int64)
        self._sheets: list[tuple[int, str, bytes]] = []
        self._failures: list[tuple[str, str, str]] = []
        self._moments: list[tuple[float, int]] = []
        self._began = time.time()
        self._waiting: list[pa.Table] = []
        self._unreported: list[pa.Table] = []
        self._written = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="unet-report-")
        self._report_path = Path(self._folder.name) / "report.parquet"
        with translate_errors(str(self._report_path)):
            self._report = pq.ParquetWriter(self._report_path, REPORT, compression="zstd")

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.time() - self._began

    @property
    def worked(self) -> int:
        """Objects that a worker has settled."""
        return sum(self.counts[status] for status in ("done", "failed", "changed", "vanished"))

    def add(self, chunk: Chunk) -> None:
        """Takes settled rows."""
        with self._lock:
            self._add(chunk)

    def _add(self, chunk: Chunk) -> None:
        rows = chunk.rows
        self.totals += chunk.totals
        for count in rows["status"].value_counts().to_pylist():
            self.counts[count["values"]] += count["counts"]
        self._unreported.append(rows)
        if sum(map(len, self._unreported)) > GROUP_ROWS:
            self._report_all()
        if chunk.class_pixels is not None:
            self._class_pixels += chunk.class_pixels
        self._sheets = sorted(self._sheets + chunk.sheets)[:SHEETS]
        self._note_failures(rows)
        done = rows.filter(pc.equal(rows["status"], "done"))
        self.bytes += pc.sum(done["size"]).as_py() or 0
        self._moments.append((self.seconds, self.counts["done"]))
        if len(self._moments) > 2 * MOMENTS:
            self._moments = self._moments[::2]
        self._waiting.append(rows.filter(pc.or_kleene(pc.equal(rows["status"], "done"), rows["permanent"])))
        least, most = PART_SECONDS
        old = time.monotonic() - self._written > min(most, max(least, PART_SHARE * self.seconds))
        if old or sum(map(len, self._waiting)) > PART_ROWS:
            self.record()

    def record(self) -> None:
        """Writes what is finished to the ledger."""
        with self._lock:
            self._record()

    def _record(self) -> None:
        rows = pa.concat_tables(self._waiting) if self._waiting else None
        if rows is not None and len(rows):
            request = self.request
            prints = pc.if_else(
                pc.equal(rows["status"], "done"), pa.scalar(request.fingerprint), pa.scalar(request.failed_fingerprint)
            )
            part = rows.select(["key", "etag", "size", "status", "error", "mask_etag"])
            part = part.append_column("fingerprint", prints)
            self.guard()
            request.ledger.append(part.append_column("time", pa.array([time.time()] * len(rows))), request.fence)
        self._waiting, self._written = [], time.monotonic()

    def finish(self, *, complete: bool) -> dict[str, Any]:
        """Writes the report and returns the summary. `complete`: the run came to its end by itself."""
        self.record()
        self._report_all()
        with translate_errors(str(self._report_path)):
            self._report.close()
        self.guard()
        if complete:
            self.request.ledger.compact(self.request.fence)
        folder = f"{OWN}runs/{self.request.run}/"
        self.target.put_file(folder + "report.parquet", self._report_path)
        summary = self._summary(complete)
        for name, data in self._page(summary).items():
            self.guard()
            self.target.put(folder + name, data, content_type=mimetypes.guess_type(name)[0] or "")
        self.target.put(
            folder + "summary.json", json.dumps(summary, indent=1).encode(), content_type="application/json"
        )
        self.discard()
        return summary

    def discard(self) -> None:
        """Removes what lies on this machine's disk."""
        self._folder.cleanup()

    def _report_all(self) -> None:
        if self._unreported:
            with translate_errors(str(self._report_path)):
                self._report.write_table(_report_rows(pa.concat_tables(self._unreported)))
        self._unreported = []

    def _note_failures(self, rows: pa.Table) -> None:
        if len(self._failures) < FAILURES_SHOWN:
            bad = rows.filter(pc.is_in(rows["status"], pa.array(["failed", "changed", "vanished"])))
            shown = bad.select(["key", "status", "error"]).slice(0, FAILURES_SHOWN - len(self._failures)).to_pylist()
            self._failures += [(row["key"], row["status"], row["error"] or "") for row in shown]

    def _summary(self, complete: bool) -> dict[str, Any]:
        seconds = self.seconds
        pixels = int(self._class_pixels.sum())
        return {
            "format": 1,
            "run": self.request.run,
            "complete": complete,
            "input": self.request.settings.input,
            "output": self.request.settings.output,
            "model": self.request.settings.model,
            "fingerprint": self.request.fingerprint,
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

    def _page(self, summary: dict[str, Any]) -> dict[str, bytes]:
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
            title=self.request.run,
            facts=facts,
            counts=summary["counts"],
            images_per_second=summary["images_per_second"] if self.counts["done"] else None,
            labels=self.labels,
            class_pixels=self._class_pixels.tolist(),
            throughput=self._moments,
            sheets=[Sheet(key=key, jpeg=jpeg) for _, key, jpeg in self._sheets],
            failures=self._failures,
            failures_total=sum(self.counts[status] for status in ("failed", "changed", "vanished")),
        )


def _report_rows(rows: pa.Table) -> pa.Table:
    keys = rows["key"].to_pylist()
    made = pc.is_in(rows["status"], pa.array(["done", "unchanged"]))
    masks = pc.if_else(made, pa.array([mask_key(key) for key in keys], pa.string()), pa.scalar(None, pa.string()))
    return rows.append_column("mask_key", masks).select(REPORT.names).cast(REPORT)
