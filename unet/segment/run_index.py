"""The index of the runs of an output: runs.json, and the page that is made from it.

Both follow from the summaries of the runs: where runs.json is missing or damaged, it is made again from the newest of
them; where it is of a newer version, both are left alone. It costs a request to read and two to write, however many
runs there were.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from unet.data.prefetch import prefetch
from unet.report.runs import MAX_RUNS_SHOWN, RunEntry, runs_page
from unet.segment.run_spec import INTERNAL
from unet.storage.faults import Vanished
from unet.storage.objects import Guard, join_uri
from unet.storage.store import Store

FORMAT = 1
"""Version of runs.json."""

RUNS_KEY, PAGE_KEY, FOLDER = f"{INTERNAL}runs.json", f"{INTERNAL}index.html", f"{INTERNAL}runs/"

MAX_RUNS = 1000
"""Runs in runs.json."""

CONCURRENT_READS = 16

_DAMAGED = (Vanished, ValueError, KeyError, TypeError, AttributeError)
"""What reading a file raises that is not there, or holds something else."""


def read_runs(store: Store) -> list[RunEntry]:
    """Return the last runs of an output that came to an end, newest first."""
    return _read(store)[0]


def add_run(store: Store, summary: Mapping[str, Any], guard: Guard) -> None:
    """Put a run that ends before the others, and write the index and its page; say if they are of a newer version."""
    known, is_newer = _read(store)
    if is_newer:
        uri = join_uri(store.uri, RUNS_KEY)
        print(f"warning: {uri}: was written by a newer version, and is left as it is; update this one", flush=True)
        return
    earlier = [run for run in known if run["run"] != summary["run"]]
    runs = [_entry(summary), *earlier][:MAX_RUNS]
    files = {
        RUNS_KEY: json.dumps({"format": FORMAT, "runs": runs}).encode(),
        PAGE_KEY: runs_page(summary["output"], runs),
    }
    for key, data in files.items():
        store.put(key, data, guard=guard)


def _read(store: Store) -> tuple[list[RunEntry], bool]:
    """Return the last runs, and whether the index is of a newer version."""
    is_newer = False
    with suppress(*_DAMAGED):
        content = json.loads(store.get(RUNS_KEY))
        if not (is_newer := content["format"] > FORMAT):
            return [_entry(run) for run in content["runs"]], False
    return _from_summaries(store), is_newer


def _entry(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the index keeps of a summary, or of such an entry. Raise one of _DAMAGED if it is none."""
    drift = summary.get("drift")
    return {
        "run": str(summary["run"]),
        "fence": summary.get("fence"),
        "complete": bool(summary["complete"]),
        "model": str(summary["model"]),
        "model_digest": summary.get("model_digest"),
        "fingerprint": str(summary["fingerprint"]),
        "counts": {str(status): int(count) for status, count in summary["counts"].items()},
        "seconds": float(summary["seconds"]),
        "images_per_second": float(summary["images_per_second"]),
        "drift": _highest_psi(drift) if isinstance(drift, Mapping) else drift,
    }


def _highest_psi(drift: Mapping[str, Any]) -> float | None:
    """Return the highest index of those that there were images enough for; None if there is none."""
    return max((index for name, index in drift["psi"].items() if name in drift["judged"]), default=None)


def _from_summaries(store: Store) -> list[RunEntry]:
    """Return the newest runs, as many as the page shows, from what they have left."""
    pages = store.list(FOLDER, f"{FOLDER}\U0010ffff")
    keys = [item.key for page in pages for item in page]
    there = [key for key in keys if key.startswith(FOLDER) and key.endswith("/summary.json")]

    def read(key: str) -> RunEntry | None:
        with suppress(*_DAMAGED):
            return _entry(json.loads(store.get(key)))
        return None

    newest: Sequence[str] = sorted(there, reverse=True)[:MAX_RUNS_SHOWN]
    read_ones = prefetch(read, newest, weight=lambda _: 1, budget=CONCURRENT_READS, threads=CONCURRENT_READS)
    return [entry for entry in read_ones if entry is not None]
