"""Preparing a submission: the private folder, the snapshot and the record, before anything is queued."""

from __future__ import annotations

import fcntl
import getpass
import time
from pathlib import Path

from configs.base import ConfigError
from configs.same_run import free_sibling
from launch.following.run_state import forget_notes
from launch.submission.folder import make_private_folder
from launch.submission.record import Kind, Submission, write_submission
from launch.submission.snapshot import RECIPE, Snapshot, read_source, take_snapshot
from launch.submission.validate import Checked


def prepare(
    checked: Checked,
    *,
    snapshot: Snapshot | None = None,
    recipe_name: str = RECIPE,
    kind: Kind = "run",
    parent: Path | None = None,
) -> Submission:
    """Makes the folder, takes a snapshot unless one is given that holds the recipe, and writes the record."""
    request = checked.request
    if request.fresh:
        move_aside(request.out)
    folder = make_private_folder(request.out)
    if snapshot is None:
        recipes = {recipe_name: request.loaded.yaml()}
        snapshot = take_snapshot(folder, recipes, digest=request.loaded.digest, source=read_source())
    submission = Submission(
        program=request.program,
        command=(request.program, str(snapshot.recipe(recipe_name)), "--out", str(request.out)),
        recipe=request.recipe,
        overrides=request.overrides,
        cluster=request.cluster,
        snapshot=snapshot.path,
        commit=snapshot.commit,
        config_hash=request.loaded.digest,
        run_folder=request.out,
        workdir=Path.cwd(),
        created=time.time(),
        user=getpass.getuser(),
        node_counts=checked.node_counts,
        kind=kind,
        parent=parent,
    )
    forget_notes(request.out)
    write_submission(submission)
    return submission


def move_aside(run_folder: Path) -> None:
    """Renames what is there to a numbered sibling, as ``--fresh`` promises; ConfigError while a run trains in it."""
    if not run_folder.exists():
        return
    lock = run_folder / ".lock"
    if lock.exists():
        with lock.open("r+b") as held:
            try:
                fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ConfigError(
                    f"a process is training in {str(run_folder)!r}; stop it before --fresh, or name another folder"
                ) from None
            run_folder.rename(free_sibling(run_folder))
        return
    run_folder.rename(free_sibling(run_folder))
