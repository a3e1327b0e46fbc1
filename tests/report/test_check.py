"""The page of a check, and the command that makes it: it trains nothing, and starts no Ray."""

from pathlib import Path

import pytest
import ray

from tests.report.check_page import report
from tests.report.html_page import Page, assert_alone
from tests.report.training_page import LABELS
from unet.command_line import main


def test_the_page_says_what_was_found() -> None:
    html = report()
    assert_alone(html)
    page = Page(html)
    assert len(page.pictures()) == 6
    for words in ("satellite", f"{len(LABELS.names) - 1} of {len(LABELS.names)}", "40 x 60", "No training pixel"):
        assert words in page.text
    for words in (
        LABELS.names[0],
        "<images>/x.png",
        "is cut off & <empty>",
        "Masks read by their colours",
        "10% ignored",
    ):
        assert words in page.text


def test_a_check_alone_leaves_a_page_and_trains_nothing(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(boxes), "--classes", str(boxes / "classes.csv"), "--output", str(tmp_path / "runs")]
    was_running = ray.is_initialized()
    assert main(["check", *given, "--name", "boxes", "--batch-size", "99"]) == 0
    assert ray.is_initialized() == was_running
    said = capsys.readouterr().out
    assert "pairs" in said
    assert f"page: {tmp_path}/runs/boxes/check.html" in said
    assert [file.name for file in (tmp_path / "runs/boxes").iterdir()] == ["check.html"]
    (next((boxes / "train").rglob("*.png"))).write_bytes(b"")
    assert main(["check", *given]) == 2
    assert "is empty" in capsys.readouterr().err
