"""A dry run's requests, dollars and hours, beside what a run then does."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.conftest import new_bucket
from tests.jobs.bench import Bench, fill, image_bytes, save_model, without_ray
from tests.servers.proxy import Proxy
from unet.segment.estimate import PRICES, dollars, ledger_parts
from unet.segment.job import segment
from unet.storage.store import open_store, write

LINES = re.compile(r"^(read|time|requests) +(.*)$", re.MULTILINE)


def said(bench: Bench, capsys: pytest.CaptureFixture[str], **given: object) -> dict[str, str]:
    """What a dry run says behind the counts."""
    capsys.readouterr()
    assert segment(bench.settings(dry_run=True, **given)) == 0
    return dict(LINES.findall(capsys.readouterr().out))


def requests_in(line: str) -> dict[str, int]:
    return {kind: int(count.replace(",", "")) for kind, count in re.findall(r"(LIST|PUT|GET|HEAD) ([\d,]+)", line)}


def kind_of(verb: str, path: str) -> str:
    return "LIST" if "list-type=2" in path else verb


def run_and_count(bench: Bench, proxy: Proxy, **given: object) -> dict[str, int]:
    """Run the job; return its requests by kind, without those that are free."""
    proxy.requests.clear()
    with without_ray():
        assert segment(bench.settings(**given)) == 0
    counts = Counter(kind_of(verb, path) for verb, path in proxy.requests)
    return {kind: counts[kind] for kind in PRICES if counts[kind]}


def test_requests_are_those_that_a_run_then_makes(s3: str, proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(new_bucket(s3))
    save_model(bench.model)
    fill(bench.images, [f"{number:03}.png" for number in range(120)])
    write(f"{bench.images}/notes.txt", b"no image")
    anew = {"force": True, "write": "mask,overlay", "objects": "box"}
    for given in ({}, {}, anew):  # a new output, nothing to do, all anew
        told = requests_in(said(bench, capsys, **given)["requests"])
        made = run_and_count(bench, proxy, **given)
        assert told.keys() == made.keys()
        for kind, count in made.items():
            assert abs(told[kind] - count) <= max(2, 0.05 * count), (given, kind, told, made)
        assert sum(told.values()) == pytest.approx(sum(made.values()), rel=0.05)


def test_hours_are_those_of_earlier_runs_and_else_of_images_that_are_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    fill(bench.images, [f"{number}.png" for number in range(12)])
    lines = said(bench, capsys, workers="3")
    assert lines["time"].endswith("as 10 images that were tried on one CPU here, times 3 workers")
    assert lines["requests"] == "none of S3"
    bench.run(limit=11)
    told = f"at {11 / bench.summary['seconds']:,.2f} images/s: as in the last runs with this model and settings (1)"
    assert said(bench, capsys)["time"].endswith(told)
    assert "with other models" in said(bench, capsys, tta=True)["time"]
    bench.run()
    assert said(bench, capsys)["time"] == "moments: there is nothing to segment"


def test_where_nothing_tells_the_speed_it_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(str(tmp_path))
    save_model(bench.model)
    for number in range(3):
        write(f"{bench.images}/{number}.png", b"no image")
    assert "none of the first 3 images could be tried" in said(bench, capsys)["time"]
    open_store(bench.images).put("3.png", image_bytes(0))
    assert "images/s" in said(bench, capsys)["time"]
    if not torch.cuda.is_available():
        assert said(bench, capsys, gpu=True)["time"].startswith("unknown: no run has ended here yet")


def test_an_object_of_a_manifest_without_etags_is_asked_for(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(bucket)
    save_model(bench.model)
    fill(bench.images, ["a.png", "b.png"])
    write(f"{bucket}/list.csv", b"key\na.png\nb.png\n")
    write(f"{bucket}/known.csv", b"key,size,etag\na.png,1,x\nb.png,1,y\n")
    asked, known = (
        requests_in(said(bench, capsys, manifest=f"{bucket}/{name}")["requests"]) for name in ("list.csv", "known.csv")
    )
    assert asked["HEAD"] == known["HEAD"] + 2


def test_a_million_of_each_kind_cost_what_the_list_says() -> None:
    assert dollars(dict.fromkeys(PRICES, 1_000_000)) == pytest.approx(5 + 5 + 0.4 + 0.4)


def test_parts_of_the_ledger_come_each_second_and_then_every_three() -> None:
    assert ledger_parts(30) == pytest.approx(30)
    assert ledger_parts(100_000) - ledger_parts(10_000) == pytest.approx(30_000)
