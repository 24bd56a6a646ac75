"""What a wheel brings: one name in site-packages, every package, every recipe, the sample."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "data_pipeline", "models", "engine", "pretrain", "finetune", "launch")
SHIPPED = ("setup.cfg", "pyproject.toml", "LICENSE", "README.md")
JUNK = shutil.ignore_patterns("__pycache__", "*.pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder of the checkout leaks into it."""
    copy, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=JUNK)
    for name in SHIPPED:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site_packages(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip installs it."""
    site = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return site


def test_the_wheel_adds_one_name_to_site_packages(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"mirada"}


def test_the_wheel_holds_every_source_file_recipe_and_sample_shard(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    wanted += (ROOT / "configs").rglob("*.yaml")
    wanted += (path for path in (ROOT / "data_pipeline" / "sample").rglob("*") if path.is_file())
    wanted += (path for path in ROOT.glob("*/templates/**/*") if path.is_file())
    missing = {f"mirada/{path.relative_to(ROOT).as_posix()}" for path in wanted} - packed
    assert not missing, f"not in the wheel: {sorted(missing)}; see package_data in setup.cfg"


def test_setup_cfg_lists_every_folder_that_is_a_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {
        init.parent.relative_to(ROOT)
        for package in PACKAGES
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert listed == {".".join(("mirada", *folder.parts)) for folder in found}


def test_an_installed_wheel_runs_from_a_folder_with_packages_of_the_same_names(
    site_packages: Path, tmp_path: Path
) -> None:
    for name in ("configs", "launch", "data_pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('somebody else')")
    # The path is set inside, as for a real site-packages: behind the standard library, working directory first.
    program = (
        f"import sys; sys.path.append({str(site_packages)!r}); from mirada.launch.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "config", "show", "configs/smoke/pretrain_vit.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert "name: " in result.stdout
