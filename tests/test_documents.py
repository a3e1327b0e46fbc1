"""The pages to read: their links lead somewhere, and what they count or list is what is there."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import unet
from cluster.submit import parse
from tests.conftest import ROOT, make_pair
from tests.jobs.bench import save_model
from unet.data.image import encode_image

PAGES = ["README.md", "CHANGELOG.md", *(f"{folder}/README.md" for folder in ("jobs", "unet", "cluster", "tests"))]


def anchors(page: str) -> list[str]:
    """The anchors of a page's headings, as they are made where it is shown: the second of one name ends in -1."""
    seen: defaultdict[str, int] = defaultdict(int)
    made = []
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), re.M):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        made.append(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return made


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_front_page_s_python_predicts_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    save_model("runs/street/model")
    Path("photo.jpg").write_bytes(encode_image(make_pair(0, (40, 56))[0], "JPEG"))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["mask"].shape == (40, 56)
    assert names["mask"].max() <= 1


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith("https://"):
            there = file if not path else file.parent / path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there.read_text()), target


@pytest.mark.parametrize("page", PAGES)
def test_scripts_tests_and_modules_that_are_named_are_there(page: str) -> None:
    named = set(re.findall(r"(?:\w+/)*\w+\.(?:py|css|js)\b", (ROOT / page).read_text()))
    folders = (ROOT / name for name in ("unet", "jobs", "tests", "cluster"))
    there = [f"/{path.relative_to(ROOT)}" for folder in folders for path in folder.rglob("*.*")]
    assert {name for name in named if not any(path.endswith(f"/{name}") for path in there)} == set()


def test_the_promises_on_the_page_are_those_that_are_tried_and_where() -> None:
    page = (ROOT / "tests" / "README.md").read_text()
    named = {
        int(number): set(re.findall(r"`([\w/]+\.py)`", places))
        for number, places in re.findall(r"^\| (\d+) \|.*\|(.*)\|$", page, re.MULTILINE)
    }
    tried: defaultdict[int, set[str]] = defaultdict(set)
    for file in (ROOT / "tests").rglob("test_*.py"):
        for numbers in re.findall(r"def test_\w*?promises?_((?:\d\d_(?:and_)?)+)", file.read_text()):
            for number in re.findall(r"\d\d", numbers):
                tried[int(number)].add(file.relative_to(ROOT / "tests").as_posix())
    assert named == tried


def test_the_page_has_the_flags_of_submit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert set(re.findall(r"^\| `(--[a-z-]+)`", (ROOT / "cluster" / "README.md").read_text(), re.MULTILINE)) == shown


def test_images_have_the_version_of_the_package() -> None:
    versions = re.findall(r"/unet:([\d.]+)-", (ROOT / "cluster" / "README.md").read_text())
    assert versions
    assert set(versions) == {unet.__version__}
