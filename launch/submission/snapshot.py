"""Snapshot: a copy of our packages and of the recipe as they are at submission; what a job runs, after a requeue too.

RUN/launch/snapshot-<commit>-<config>/{configs, data_pipeline, ..., recipe.yaml, uncommitted.diff}
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from launch.programs import ROOT

RECIPE = "recipe.yaml"
DIFF = "uncommitted.diff"
"""What the working tree had beside its commit, as git says it; empty where it had nothing."""
PACKAGES = ("configs", "data_pipeline", "models", "engine", "pretrain", "finetune", "launch")

_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The code as it is now: which files, and how they are called."""

    root: Path
    files: tuple[str, ...]
    """Below `root`."""
    commit: str
    """``1a2b3c4d5e6f``, with ``+`` and a digest when files differ from it; ``v0.1.0`` where there is no repository."""
    diff: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A copy that nobody changes."""

    path: Path
    commit: str

    def recipe(self, name: str = RECIPE) -> Path:
        """A recipe that was put into it."""
        return self.path / name


def read_source(root: Path = ROOT) -> Source:
    """The files of our packages: of a checkout those that git tracks or would track, else those installed."""
    said = _git(root, "rev-parse", "--show-toplevel", "--git-path", "index", "HEAD").decode().splitlines()
    if len(said) != 3 or said[0] != str(root):
        return Source(
            root=root, files=tuple(sorted(_installed_files(root))), commit=f"v{_version()}", diff=b""
        )
    commit = said[2][:_DIGITS]
    with tempfile.TemporaryDirectory(prefix="mirada-") as folder:
        # A copy of git's index, to which new files are added: one diff then tells of them too.
        index = Path(folder) / "index"
        shutil.copy(root / said[1], index)
        _git(root, "add", "--intent-to-add", "--", *PACKAGES, index=index)
        listed = _git(root, "ls-files", "-z", "--cached", "--", *PACKAGES, index=index)
        diff = _git(root, "diff", "--binary", "HEAD", "--", *PACKAGES, index=index)
    return Source(
        root=root,
        files=tuple(sorted(name for name in set(listed.decode().split("\0")) if (root / name).is_file())),
        commit=f"{commit}+{hashlib.sha256(diff).hexdigest()[:8]}" if diff else commit,
        diff=diff,
    )


def take_snapshot(folder: Path, recipes: Mapping[str, str], *, digest: str, source: Source) -> Snapshot:
    """Copies the code and the recipes (YAML by file name) below `folder`; one that is there already is used again."""
    target = folder / f"snapshot-{source.commit}-{digest}"
    if not target.exists():
        aside = Path(tempfile.mkdtemp(prefix=".snapshot-", dir=folder))
        _copy(source.root, source.files, aside)
        (aside / DIFF).write_bytes(source.diff)
        for name, text in recipes.items():
            (aside / name).write_text(text)
        aside.rename(target)
    return Snapshot(path=target, commit=source.commit)


def _copy(root: Path, files: Sequence[str], target: Path) -> None:
    for folder in {Path(name).parent for name in files}:
        (target / folder).mkdir(parents=True, exist_ok=True)
    for name in files:
        shutil.copy2(root / name, target / name)


def _installed_files(root: Path) -> list[str]:
    found = (path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    return [path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts]


def _git(root: Path, *arguments: str, index: Path | None = None) -> bytes:
    """What git prints; nothing where it is not installed or this is no repository."""
    environment = None if index is None else {**os.environ, "GIT_INDEX_FILE": str(index)}
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, env=environment, check=False).stdout
    except FileNotFoundError:
        return b""


def _version() -> str:
    try:
        return metadata.version("mirada")
    except metadata.PackageNotFoundError:
        return "0"
