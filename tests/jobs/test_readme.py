"""jobs/README.md has every flag as it is."""

import re
from dataclasses import dataclass
from typing import Literal

import pytest

from tests import flags
from unet.command_line import parse


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group."""

    share: float | None = None
    """A share of a * b,
    or none."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A job."""

    name: str
    """With --size: a name|label."""
    size: tuple[int, int] = (3, 4)
    """Height and width [pixels]."""
    keys: tuple[str, ...] = ()
    """Keys."""
    way: Literal["up", "down"] = "up"
    """Way."""
    gpu: bool = False
    """Use it."""
    group: Group = Group()


TABLES = """\
| flag | value | default | |
|---|---|---|---|
| `--name` | text | required | With `--size`: a name\\|label. |
| `--size` | 2 integers | `3 4` | Height and width [pixels]. |
| `--keys` | texts, any number | none | Keys. |
| `--way` | `up`, `down` | `up` | Way. |
| `--gpu` | switch | off | Use it. |

A group.

| flag | value | default | |
|---|---|---|---|
| `--share` | number | none | A share of a \\* b, or none. |
"""


def test_the_page_has_the_flags_of_the_settings_classes() -> None:
    page = flags.PAGE.read_text()
    assert flags.renewed(page) == page, f"jobs/README.md is stale: `{flags.COMMAND}` renews it"


@pytest.mark.parametrize("job", flags.JOBS)
def test_the_page_names_the_flags_that_help_shows(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(flags.JOBS[job], ["--help"])
    shown = set(re.findall(r"^(?:│ |  )(--[a-z][a-z0-9-]*)", capsys.readouterr().out, re.MULTILINE))
    part = flags.PAGE.read_text().split(f"<!-- flags of {job} -->")[1].split("<!-- end -->")[0]
    named = set(re.findall(r"^\| `(--[a-z0-9-]+)`", part, re.MULTILINE))
    assert named == shown


def test_a_table_has_the_kind_the_default_and_the_docstring_of_each_field() -> None:
    assert flags.tables(Example) == TABLES


def test_a_stale_page_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flags.JOBS, "example", Example)
    page = "Before.\n<!-- flags of example -->\n\nof an older version\n\n<!-- end -->\nAfter.\n"
    made = flags.renewed(page)
    assert made == f"Before.\n<!-- flags of example -->\n\n{TABLES}\n<!-- end -->\nAfter.\n"
    assert flags.renewed(made) == made
