"""The wheel: it holds all that the jobs need, and they run from it where no checkout is."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import unet
from tests.conftest import ROOT, write_boxes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools builds beside the sources, and would find modules of an earlier build there
    for name in ("unet", "cluster"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_every_module_and_what_the_pages_are_made_of(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "unet").rglob("*") if path.suffix in (".py", ".css", ".js", ".csv", ".typed")]
    assert held >= {str(path.relative_to(ROOT)) for path in files}
    assert {name.split("/")[0] for name in held} == {"unet", "unet_cluster", f"unet_ray-{unet.__version__}.dist-info"}


@pytest.mark.slow
def test_the_jobs_run_from_the_wheel_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    # What the wheel depends on is there already; a path file below a path file is not read, so this checkout is not.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    zipfile.ZipFile(wheel).extractall(packages)
    start = "import sys; from unet.command_line import main; sys.exit(main())"
    program = [str(environment / "bin" / "python"), "-c", start]
    boxes, empty = write_boxes(tmp_path / "boxes"), tmp_path / "empty"
    empty.mkdir()
    for command in (
        f"train --data {boxes} --classes {boxes}/classes.csv --size 32 32 --width 8 --epochs 1 --batch-size 4",
        f"segment --input {boxes}/val/images --output masks --model runs/unet/model",
        f"evaluate --data {boxes} --model runs/unet/model --output scores",
        "export --model runs/unet/model --output unet.onnx",
    ):
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(
            [*program, *command.split()],
            cwd=empty,
            env=variables | {"RAY_ADDRESS": "local"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (empty / "runs/unet/report/index.html").exists()
    assert len(list((empty / "masks").glob("*.png"))) == 5
    assert {path.name for path in empty.iterdir()} >= {"unet.onnx", "scores", "masks", "runs"}
