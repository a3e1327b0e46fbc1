"""The page of an output: its runs, newest first, and what speed, losses and drift were from run to run.

The caller stores it as _segment/index.html, above the pages of the runs, which it links to.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from unet.report.page import render_page, side_by_side
from unet.report.plots import Point, line_plot
from unet.report.segmentation import LOST, format_rate
from unet.report.tables import Cell, count_cell, sortable_table

MAX_RUNS_SHOWN = 200
"""Runs on the page; those before them are counted."""

COLUMNS = ("Began (UTC)", "Done", "Lost", "Images per second", "Seconds", "Unchanged", "Highest PSI", "Ended", "Model")

RunEntry = Mapping[str, Any]
"""What is shown of a run: see `_segment/runs.json` in unet/README.md."""


def runs_page(output: str, runs: Sequence[RunEntry]) -> bytes:
    """Return the page as HTML. `runs`: newest first, at least one."""
    shown, last = runs[:MAX_RUNS_SHOWN], runs[0]
    headline = {
        "Runs": f"{len(runs):,}",
        "Done in the last": f"{last['counts'].get('done', 0):,}",
        "Lost in the last": f"{_lost(last):,}",
        "Images per second": format_rate(_rate(last)),
    }
    facts = {"Output": output, "Model": last["model"], "Model digest": last["model_digest"] or "not recorded"}
    table = sortable_table("Runs", COLUMNS, map(_row, shown))
    older = f"<p>{len(runs) - len(shown):,} older ones are left out.</p>" if len(runs) > len(shown) else ""
    return render_page(
        output, "Segmentation runs", headline, facts, {"Runs": table + older, "Run by run": _plots(shown)}
    )


def began(run: str) -> str:
    """Return when a run of this name began, in UTC, to the minute; its name if that does not say it."""
    try:
        return datetime.strptime(run.split("-")[0], "%Y%m%dT%H%M%SZ").strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return run


def _row(entry: RunEntry) -> list[str | Cell]:
    counts, rate, drift = entry["counts"], _rate(entry), entry["drift"]
    return [
        Cell(text=began(entry["run"]), link=f"runs/{entry['run']}/index.html"),
        count_cell(counts.get("done", 0)),
        count_cell(_lost(entry)),
        Cell(text=format_rate(rate), value=math.nan if rate is None else rate),
        Cell(text=f"{entry['seconds']:,.1f}", value=entry["seconds"]),
        count_cell(counts.get("unchanged", 0)),
        Cell(text="n/a" if drift is None else f"{drift:.3f}", value=math.nan if drift is None else drift),
        "complete" if entry["complete"] else "early",
        (entry["model_digest"] or "")[:12],
    ]


def _lost(entry: RunEntry) -> int:
    return sum(entry["counts"].get(status, 0) for status in LOST)


def _rate(entry: RunEntry) -> float | None:
    """Return images per second; None for a run that had nothing to do."""
    return float(entry["images_per_second"]) if entry["counts"].get("done") else None


def _plots(shown: Sequence[RunEntry]) -> str:
    """Return what can be plotted over the runs, the oldest first: number 1."""
    lines: dict[str, list[float | None]] = {
        "Images per second": [_rate(entry) for entry in shown],
        "Lost objects": [_lost(entry) for entry in shown],
        "Drift: highest PSI": [entry["drift"] for entry in shown],
    }
    plots = [_plot(name, values) for name, values in lines.items() if len(shown) > 1 and any(values)]
    return side_by_side(*plots) if plots else ""


def _plot(name: str, values: Sequence[float | None]) -> str:
    points: list[Point] = [
        (number, math.nan if value is None else value) for number, value in enumerate(reversed(values), 1)
    ]
    return line_plot(name, [(name, points)], x_name=f"runs, the newest is {len(points)}")
