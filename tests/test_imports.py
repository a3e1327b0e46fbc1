"""Imports point one way: jobs -> jobs' logic on Ray -> torch and IO -> arrays -> labels and settings."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ROWS = (
    {"training", "segmentation", "evaluation", "export"},
    {"fitting", "trainer", "recorder", "steps"},
    {"telemetry"},
    {"pipeline", "quarantine", "scorer"},
    {"segmenter"},
    {"listing"},
    {"manifest"},
    {"datasets", "progress"},
    {"session"},
    {
        "command_line",
        "predict",
        "artifact",
        "ledger",
        "lease",
        "checkpoint",
        "journal",
        "learner",
        "report",
        "run_page",
        "evaluation_page",
        "sample",
        "labelled_set",
    },
    {"comparison", "score_tables"},
    {"plots", "tables", "layouts"},
    {"storage", "schedule", "page", "scene", "memory", "priority", "stop"},
    {"s3", "local"},
    {"s3_faults"},
    {"stored"},
    {"inference"},
    {"model", "loss", "metrics", "augment", "tiling", "optimizer", "ranks", "scenery"},
    {"image", "canvas"},
    {"palette"},
    {"labels"},
    {"settings", "published"},
)
"""Modules of unet/, highest first: each imports only from rows below its own, or within its own where SIDEWAYS says."""

RAY = {
    "datasets",
    "evaluation",
    "fitting",
    "pipeline",
    "progress",
    "segmentation",
    "session",
    "steps",
    "telemetry",
    "trainer",
    "training",
}
SIDEWAYS = {("predict", "artifact")}


def imported(file: Path) -> set[str]:
    """Every module that `file` imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


MODULES = sorted(file for file in (ROOT / "unet").glob("*.py") if file.stem != "__init__")


def test_every_module_has_its_row() -> None:
    assert {file.stem for file in MODULES} == set().union(*ROWS)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
def test_a_module_imports_only_what_lies_below_it(file: Path) -> None:
    row = next(place for place, names in enumerate(ROWS) if file.stem in names)
    for other in {name.split(".")[1] for name in imported(file) if name.startswith("unet.")}:
        below = next((place for place, names in enumerate(ROWS) if other in names), len(ROWS))
        assert below > row or (file.stem, other) in SIDEWAYS, f"{file.stem} imports {other}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
def test_only_the_top_rows_import_ray(file: Path) -> None:
    uses_ray = any(name.split(".")[0] == "ray" for name in imported(file))
    assert uses_ray <= (file.stem in RAY)


def test_jobs_import_one_function_and_its_settings() -> None:
    for file in (ROOT / "jobs").glob("*.py"):
        modules = {name.split(".")[1] for name in imported(file) if name.startswith("unet.")}
        assert {"command_line", "settings"} < modules
        assert len(modules) == 3
