"""The house stands as it is drawn: imports point one way, private Ray is in one file, and nothing grows too long."""

from pathlib import Path

import pytest

from tests import structure


def test_no_rule_of_the_house_is_broken() -> None:
    assert structure.faults() == []


def test_every_wing_has_its_row() -> None:
    assert {structure.wing_of(file) for file in structure.modules()} == structure.BELOW.keys() | structure.TOP


def test_rows_point_one_way() -> None:
    order = list(structure.BELOW)
    for wing, below in structure.BELOW.items():
        assert {order.index(other) for other in below} <= set(range(order.index(wing)))


def test_a_script_imports_the_command_line_and_one_job() -> None:
    for file in (structure.ROOT / "jobs").glob("*.py"):
        assert {name.split(".")[1] for name in structure.imported(file) if name.startswith("unet.")} == {"command_line"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("import unet.train.loop", "imports train"),
        ("from ray._private import worker", "imports ray"),
        ("from ray.data._internal import stats", "the private ray.data._internal.stats"),
        ("def long():\n" + "    x = 1\n" * 50, "long has 51 lines"),
        ("# a comment\n" * 400, "has 400 lines"),
    ],
)
def test_a_fault_is_seen(line: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "unet" / "storage" / "wrong.py"
    module.parent.mkdir(parents=True)
    module.write_text(line)
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    assert any(fault in found for found in structure.faults())


def test_code_lines_are_those_without_blanks_comments_and_docstrings(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""A\ndocstring."""\n\n# a comment\nx = (\n    1,  # one\n)\n"""Of x."""\ny = """a\ntext"""\n')
    assert structure.code_lines(module) == 5
