"""The tables of flags in jobs/README.md, from the settings classes: `python tests/flags.py` renews them.

The tables of a job stand between `<!-- flags of NAME -->` and `<!-- end -->`: first the job's own flags, then those of
each group of its settings. tests/jobs/test_readme.py fails where the page and the classes differ.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from unet.evaluate.settings import EvaluateSettings
from unet.model.settings import ExportSettings
from unet.segment.settings import ExplainSettings, SegmentSettings
from unet.train.settings import TrainSettings

PAGE = Path(__file__).parent.parent / "jobs" / "README.md"

COMMAND = "python tests/flags.py"
"""What renews the page."""

JOBS: dict[str, type] = {
    "train": TrainSettings,
    "segment": SegmentSettings,
    "explain": ExplainSettings,
    "evaluate": EvaluateSettings,
    "export": ExportSettings,
}

NOUNS = {int: "integer", float: "number", str: "text"}

_PLACE = re.compile(r"(<!-- flags of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(page: str) -> str:
    """Return `page` with the tables of every job as its settings class has them."""
    return _PLACE.sub(lambda found: f"{found[1]}\n{tables(JOBS[found[2]])}\n{found[3]}", page)


def tables(settings: Any) -> str:
    """Return the table of a settings class, and below it those of its groups under their docstrings."""
    groups = [item.type for item in fields(settings) if is_dataclass(item.type)]
    return table(settings) + "".join(f"\n{escaped(inspect.getdoc(group) or '')}\n\n{table(group)}" for group in groups)


def table(settings: Any) -> str:
    """Return the flags of a settings class, without those of its groups, as a table; required ones first."""
    texts = dict(docstrings(settings))
    flags = [item for item in fields(settings) if not is_dataclass(item.type)]
    rows = [
        f"| `--{item.name.replace('_', '-')}` | {values(item.type)} | {default(item)} | {escaped(texts[item.name])} |"
        for item in sorted(flags, key=lambda item: item.default is not MISSING)
    ]
    return "\n".join(["| flag | value | default | |", "|---|---|---|---|", *rows, ""])


def docstrings(settings: type) -> Iterator[tuple[str, str]]:
    """Yield the fields of a class that have a docstring below them, its bases' first, and the docstring on one line."""
    for base in settings.__mro__[-2::-1]:
        (definition,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                yield field.target.id, " ".join(str(text.value.value).split())


def values(kind: Any) -> str:
    """Return what a flag of this type takes."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (given for given in get_args(kind) if given is not NoneType)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        return f"{NOUNS[first]}s, any number" if rest == [...] else f"{1 + len(rest)} {NOUNS[first]}s"
    return "switch" if kind is bool else NOUNS[kind]


def default(item: Field[Any]) -> str:
    """Return the default of a flag as it would be given; `none` where its text says what happens without it."""
    value = item.default
    if value is MISSING:
        return "required"
    if isinstance(value, bool):
        return "on" if value else "off"
    given = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return "none" if given in (None, "") else f"`{given}`"


def escaped(text: str) -> str:
    """Return `text` as Markdown that shows it as it is, flags as code."""
    literal = re.sub(r"([\\`*_<>|])", r"\\\1", text)
    return re.sub(r"(?<![\w-])--[a-z][a-z0-9-]*", r"`\g<0>`", literal)


def main() -> int:
    """Renew the page."""
    before = PAGE.read_text()
    after = renewed(before)
    PAGE.write_text(after)
    print(f"{PAGE.name}: {'unchanged' if after == before else 'renewed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
