"""CheckpointFolder: a run's checkpoints on the disk that all its ranks share; used by one rank at a time."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.whole_file import sync_folder, write_whole
from engine.saving.manifest import Manifest

log = logging.getLogger(__name__)

LATEST = "latest"
_PREFIX = "step-"
_PARTIAL = ".partial-"
_REPLACED = ".replaced-"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFolder:
    """``step-00001200/`` and so on, each whole; ``latest`` names the newest; what begins with a dot is unfinished."""

    path: Path
    keep: int
    """So many of the newest stay."""

    def final(self, step: int) -> Path:
        """Where the checkpoint of a step stands."""
        return self.path / f"{_PREFIX}{step:08d}"

    def partial(self, step: int, token: str) -> Path:
        """Where it is written; the token keeps it apart from that of a process that was killed and may still write."""
        return self.path / f"{_PARTIAL}{_PREFIX}{step:08d}-{token}"

    def names(self) -> list[str]:
        """Names of the checkpoints, newest first."""
        if not self.path.is_dir():
            return []
        return sorted((p.name for p in self.path.iterdir() if p.name.startswith(_PREFIX)), reverse=True)

    def publish(self, partial: Path, manifest: Manifest) -> None:
        """Puts a checkpoint whose files are all on the disk in its place, and removes those that are too many."""
        final = self.final(manifest.step)
        manifest.write(partial)
        if final.exists():  # broken, and skipped when this run resumed
            self._set_aside(final)
        partial.rename(final)
        sync_folder(self.path)
        try:
            write_whole(self.path / LATEST, final.name + "\n")
            for name in self.names()[self.keep :]:
                shutil.rmtree(self._set_aside(self.path / name))
            self.remove_unfinished()
        except OSError as error:
            log.warning("checkpoint %s stands, but to tidy up after it failed: %s", final, error)

    def remove_unfinished(self) -> list[str]:
        """Removes what saves that did not end left behind; returns the names of the checkpoints they were to be."""
        if not self.path.is_dir():
            return []
        found = []
        for path in sorted(self.path.iterdir()):
            if path.name.startswith(_PARTIAL):
                found.append(path.name.removeprefix(_PARTIAL).rpartition("-")[0])
            if path.name.startswith((_PARTIAL, _REPLACED)):
                shutil.rmtree(path)
            elif path.name.startswith(f".{LATEST}."):
                path.unlink()
        return found

    def _set_aside(self, path: Path) -> Path:
        """Takes a checkpoint out of its place; one that is then half removed is not mistaken for a broken one."""
        aside = self.path / f"{_REPLACED}{path.name}"
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
        return aside
