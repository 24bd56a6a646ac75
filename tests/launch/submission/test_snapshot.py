"""A snapshot holds the code as it was at submission, committed or not, and says what it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from launch.submission.snapshot import DIFF, PACKAGES, read_source, take_snapshot


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for package in PACKAGES:
        (root / package / "inner").mkdir(parents=True)
        (root / package / "__init__.py").write_text(f'"""{package}"""\n')
    (root / "engine" / "inner" / "old.py").write_text("a = 1\n")
    (root / "configs" / "a.yaml").write_text("x: 1\n")
    (root / "notes.txt").write_text("not ours to copy\n")
    (root / ".gitignore").write_text("*.log\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] in PACKAGES
    }


def test_a_clean_checkout_is_named_by_its_commit(checkout: Path, tmp_path: Path) -> None:
    source = read_source(checkout)
    assert source.commit == git(checkout, "rev-parse", "HEAD").strip()[:12]
    snapshot = take_snapshot(tmp_path, {"recipe.yaml": "x: 2\n"}, digest="abc", source=source)
    assert snapshot.path == tmp_path / f"snapshot-{source.commit}-abc"
    assert (snapshot.path / DIFF).read_bytes() == b""
    assert snapshot.recipe().read_text() == "x: 2\n"
    assert sorted(path.name for path in snapshot.path.iterdir()) == sorted([*PACKAGES, DIFF, "recipe.yaml"])


def test_uncommitted_changes_are_in_it_and_recorded(checkout: Path, tmp_path: Path) -> None:
    before = read_source(checkout)
    (checkout / "engine" / "inner" / "old.py").write_text("a = 2\n")
    (checkout / "models" / "new.py").write_text("b = 1\n")
    (checkout / "models" / "debug.log").write_text("ignored\n")
    (checkout / "launch" / "__init__.py").unlink()
    source = read_source(checkout)
    assert source.commit.startswith(f"{before.commit}+") and source.commit != before.commit
    snapshot = take_snapshot(tmp_path, {}, digest="abc", source=source)
    found = contents(snapshot.path)
    assert (found["engine/inner/old.py"], found["models/new.py"]) == ("a = 2\n", "b = 1\n")
    assert "models/debug.log" not in found and "launch/__init__.py" not in found


def test_commit_and_diff_together_are_the_code_that_ran(checkout: Path, tmp_path: Path) -> None:
    (checkout / "engine" / "inner" / "old.py").write_text("a = 2\n")
    (checkout / "models" / "new.py").write_text("b = 1\n")
    snapshot = take_snapshot(tmp_path, {}, digest="abc", source=read_source(checkout))
    git(tmp_path, "clone", "-q", str(checkout), str(tmp_path / "again"))
    git(tmp_path / "again", "apply", str(snapshot.path / DIFF))
    assert contents(tmp_path / "again") == contents(snapshot.path)


def test_other_changes_get_another_name(checkout: Path) -> None:
    names = set()
    for text in ("a = 2\n", "a = 3\n"):
        (checkout / "engine" / "inner" / "old.py").write_text(text)
        names.add(read_source(checkout).commit)
    (checkout / "models" / "new.py").write_text("b = 1\n")
    names.add(read_source(checkout).commit)
    assert len(names) == 3


def test_what_is_outside_our_packages_makes_no_difference(checkout: Path) -> None:
    clean = read_source(checkout)
    (checkout / "notes.txt").write_text("more\n")
    (checkout / "scratch.py").write_text("")
    assert read_source(checkout) == clean


def test_edits_afterwards_change_nothing(checkout: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path, {}, digest="abc", source=read_source(checkout))
    before = contents(snapshot.path)
    for path in checkout.rglob("*.py"):
        path.write_text("raise SystemExit(1)\n")
    assert contents(snapshot.path) == before


def test_the_same_code_and_config_are_copied_once(checkout: Path, tmp_path: Path) -> None:
    source = read_source(checkout)
    first = take_snapshot(tmp_path, {}, digest="abc", source=source)
    (first.path / "mark").touch()
    assert (take_snapshot(tmp_path, {}, digest="abc", source=source).path / "mark").exists()
    assert not (take_snapshot(tmp_path, {}, digest="def", source=source).path / "mark").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".snapshot")]


def test_an_installed_package_without_a_repository_is_copied_whole(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".git")
    (checkout / "engine" / "__pycache__").mkdir()
    (checkout / "engine" / "__pycache__" / "old.pyc").write_bytes(b"")
    source = read_source(checkout)
    assert source.commit.startswith("v") and source.diff == b""
    found = contents(take_snapshot(tmp_path, {}, digest="abc", source=source).path)
    assert "engine/inner/old.py" in found and not [name for name in found if "__pycache__" in name]


def test_a_snapshot_within_another_repository_is_no_checkout(checkout: Path) -> None:
    """A run folder below a checkout, from whose snapshot something is submitted again."""
    source = read_source(checkout)
    snapshot = take_snapshot(checkout, {}, digest="abc", source=source)
    again = read_source(snapshot.path)
    assert again.commit.startswith("v") and set(again.files) == set(source.files)
