"""The index of an output's runs, beside what the runs themselves have left."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.bench import Bench, fill, save_model
from tests.report.runs_page import entry
from unet.segment.run_index import MAX_RUNS, RUNS_KEY, add_run, read_runs
from unet.storage import store
from unet.storage.objects import join_uri, no_guard
from unet.storage.store import open_store


def names(output: str) -> list[Any]:
    return [run["run"] for run in read_runs(open_store(output))]


def test_each_run_stands_in_the_index_before_its_summary_is_there(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.png"])
    bench.run()
    first = bench.summary
    bench.run(force=True)
    newest, oldest = read_runs(open_store(bench.masks))
    assert (newest["run"], oldest["run"]) == (bench.summary["run"], first["run"])
    assert (newest["counts"], newest["fence"], newest["drift"]) == ({"done": 2}, 2, None)
    assert newest["model_digest"] == json.loads(store.read(join_uri(bench.model, "model.json")))["digest"]
    page = (tmp_path / "masks/_segment/index.html").read_text()
    assert f'href="runs/{first["run"]}/index.html"' in page
    folder = tmp_path / "masks/_segment/runs" / newest["run"]
    written = {
        file.name: file.stat().st_mtime_ns for file in [*folder.iterdir(), *(tmp_path / "masks/_segment").glob("*.*")]
    }
    assert max(written, key=lambda name: written[name]) == "summary.json"


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"format": 0, "runs": 3}', b'{"format": 1, "runs": [3]}'])
def test_an_index_that_is_missing_or_damaged_is_made_from_the_summaries(tmp_path: Path, damage: bytes | None) -> None:
    output = str(tmp_path)
    for number in (1, 2, 3):
        summary = json.dumps(entry(number) | {"format": 1}).encode()
        store.write(join_uri(output, f"_segment/runs/{entry(number)['run']}/summary.json"), summary)
    store.write(join_uri(output, "_segment/runs/20260101T000000Z-dead/summary.json"), b"half a su")
    if damage is not None:
        store.write(join_uri(output, RUNS_KEY), damage)
    add_run(open_store(output), entry(4) | {"output": output}, no_guard)
    assert names(output) == [entry(number)["run"] for number in (4, 3, 2, 1)]


def test_an_index_of_a_newer_version_is_left_alone_and_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, newer = str(tmp_path), b'{"format": 2, "runs": {}}'
    store.write(join_uri(output, RUNS_KEY), newer)
    add_run(open_store(output), entry(4) | {"output": output}, no_guard)
    assert store.read(join_uri(output, RUNS_KEY)) == newer
    assert not (tmp_path / "_segment/index.html").exists()
    said = f"{join_uri(output, RUNS_KEY)}: was written by a newer version, and is left as it is; update this one"
    assert capsys.readouterr().out == f"warning: {said}\n"


def test_the_index_keeps_the_last_thousand_and_a_run_once(tmp_path: Path) -> None:
    output = str(tmp_path)
    runs = [entry(number, run=f"run-{number}") for number in range(MAX_RUNS, 0, -1)]
    store.write(join_uri(output, RUNS_KEY), json.dumps({"format": 1, "runs": runs}).encode())
    for _ in range(2):
        add_run(open_store(output), entry(0, run="newest") | {"output": output}, no_guard)
    assert names(output) == ["newest", *(run["run"] for run in runs[:-1])]


def test_the_highest_psi_that_is_judged_is_the_drift_of_a_run(tmp_path: Path) -> None:
    output = str(tmp_path)
    add_run(
        open_store(output),
        entry(1, drift={"psi": {"red": 0.1, "green": 0.4, "classes": 0.9}, "judged": ["red", "green", "confidence"]})
        | {"output": output},
        no_guard,
    )
    assert [run["drift"] for run in read_runs(open_store(output))] == [0.4]
