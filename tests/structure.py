"""What the house is made of: `python tests/structure.py`.

Prints the wings with their modules and code lines, the arrows between wings, and which files import private Ray. Code
lines are lines that hold a token of code: no blank ones, no comments, no docstrings. `faults` lists what breaks the
rules of the house; test_structure.py asserts that there are none.
"""

import ast
import io
import sys
import token
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

BELOW = {
    "settings": set(),
    "storage": {"settings"},
    "runtime": {"settings", "storage"},
    "data": {"settings", "storage"},
    "sample": {"settings", "storage", "data"},
    "model": {"settings", "storage", "data"},
    "report": {"settings", "data", "model"},
    "train": {"settings", "storage", "runtime", "data", "sample", "model", "report"},
    "segment": {"settings", "storage", "runtime", "data", "model", "report"},
    "evaluate": {"settings", "storage", "runtime", "data", "model", "report"},
}
"""What a wing may import besides itself; `settings` is the module unet/settings.py."""

TOP = {"__init__", "command_line"}
"""Modules of unet/ that stand above the wings."""

RAY = {"train", "segment", "evaluate", "runtime"}
"""Wings that may import ray."""

PRIVATE = ("ray._private", "ray.experimental")
"""Packages of Ray that only unet/runtime/ray_internals.py may import, as any with a part named `_internal`."""

MOST_WINGS, MOST_CODE, MOST_LINES, MOST_FUNCTION = 10, 12886, 330, 45
"""Wings; code lines in unet/; lines of a file; lines of a function."""


def modules() -> list[Path]:
    """Every module of unet/."""
    return sorted((ROOT / "unet").rglob("*.py"))


def wing_of(file: Path) -> str:
    """The wing that a module stands in, or its own name at the top."""
    parts = file.relative_to(ROOT / "unet").parts
    return parts[0] if len(parts) > 1 else file.stem


def imported(file: Path) -> set[str]:
    """Full names of all that `file` imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wings_imported(file: Path) -> set[str]:
    """The wings, and modules at the top, that `file` imports from."""
    return {name.split(".")[1] for name in imported(file) if name.startswith("unet.")} - {wing_of(file)}


def private_names(file: Path) -> set[str]:
    """What `file` imports of Ray that Ray does not promise to keep."""
    ray = {name for name in imported(file) if name.split(".")[0] == "ray"}
    return {name for name in ray if name.startswith(PRIVATE) or any(part.startswith("_") for part in name.split("."))}


def code_lines(file: Path) -> int:
    """Lines of `file` that hold code."""
    source = file.read_text()
    texts = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    ignored = {token.NEWLINE, tokenize.NL, token.INDENT, token.DEDENT, tokenize.COMMENT, token.ENDMARKER}
    held = {
        line
        for item in tokenize.generate_tokens(io.StringIO(source).readline)
        if item.type not in ignored
        for line in range(item.start[0], item.end[0] + 1)
    }
    return len(held - texts)


def long_functions(file: Path) -> Iterator[tuple[str, int]]:
    """Functions of `file` over the limit, with their lines."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MOST_FUNCTION:
                yield node.name, lines


def arrows() -> dict[str, set[str]]:
    """The wings that each wing imports from, as they are."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in modules():
        if wing_of(file) not in TOP:
            found[wing_of(file)] |= wings_imported(file)
    return dict(found)


def circles() -> list[str]:
    """Wings that import themselves by way of others."""
    below = arrows()

    def reached(wing: str) -> set[str]:
        seen, rest = set[str](), [*below.get(wing, ())]
        while rest:
            if (name := rest.pop()) not in seen:
                seen.add(name)
                rest += below.get(name, ())
        return seen

    return [f"{wing} imports itself by way of others" for wing in below if wing in reached(wing)]


def faults() -> list[str]:
    """What breaks a rule, one line each."""
    found = circles()
    wings = {wing_of(file) for file in modules()} - TOP - {"settings"}
    if len(wings) > MOST_WINGS:
        found.append(f"{len(wings)} wings, over {MOST_WINGS}")
    if (lines := sum(map(code_lines, modules()))) > MOST_CODE:
        found.append(f"{lines} code lines in unet/, over {MOST_CODE}")
    for file in modules():
        name, wing = file.relative_to(ROOT), wing_of(file)
        if wing not in TOP:
            found += [f"{name} imports {other}" for other in sorted(wings_imported(file) - BELOW.get(wing, set()))]
        if wing not in RAY and any(module.split(".")[0] == "ray" for module in imported(file)):
            found.append(f"{name} imports ray")
        if file.stem != "ray_internals":
            found += [f"{name} imports the private {private}" for private in sorted(private_names(file))]
        if (lines := file.read_text().count("\n")) > MOST_LINES:
            found.append(f"{name} has {lines} lines, over {MOST_LINES}")
        found += [f"{name}: {function} has {lines} lines" for function, lines in long_functions(file)]
    return found


def main() -> int:
    """Prints the structure and its faults; returns 1 if there are any."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for file in modules():
        wing = wing_of(file) if wing_of(file) not in TOP | {"settings"} else "(top)"
        files[wing] += file.stem != "__init__"
        lines[wing] += code_lines(file)
    below = arrows()
    for wing in sorted(lines):
        print(f"{wing:10} {files[wing]:3} modules {lines[wing]:6,} code lines  {' '.join(sorted(below.get(wing, ())))}")
    print(f"{'unet/':10} {files.total():3} modules {lines.total():6,} code lines")
    for file in modules():
        for private in sorted(private_names(file)):
            print(f"private Ray: {file.relative_to(ROOT)}: {private}")
    found = faults()
    print("\n".join(found) or "no rule is broken")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
