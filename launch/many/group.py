"""What the runs of one sweep or pipeline share: their checks, their snapshot, the record of the whole, and its name.

OUT/sweep.json: what the tracker makes the parent run from; OUT/launch/: snapshot and record; OUT/RUN/: the runs.
"""

from __future__ import annotations

import getpass
import json
import os
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.base import ConfigError
from configs.cluster import ClusterConfig
from launch.following.event_tail import EventTail
from launch.submission.folder import make_private_folder
from launch.submission.record import Kind, Submission, read_submission, write_submission
from launch.submission.request import Request
from launch.submission.run import submit_recorded
from launch.submission.snapshot import Snapshot, read_source, take_snapshot
from launch.submission.validate import Checked, check, find_mistakes

PARENT_FILE = "sweep.json"
"""Read by engine.tracking.mlflow_parent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a sweep, or one program of a pipeline or a search."""

    label: str
    """For people."""
    program: str
    command: tuple[str, ...]
    """Module and arguments of every task."""
    recipe: str
    overrides: tuple[str, ...]
    cluster: ClusterConfig
    run_folder: Path
    node_counts: tuple[int, ...] = ()


def check_all(requests: Mapping[str, Request], *, promised: Collection[Path] = ()) -> dict[str, Checked]:
    """Checks the requests, by label; raises one ConfigError with every mistake, each with those that it is about."""
    found: dict[str, list[str]] = {}
    for label, request in requests.items():
        for mistake in find_mistakes(request, promised):
            found.setdefault(mistake, []).append(label)
    refuse(mistake_lines(found, len(requests)))
    return {label: check(request, promised=promised) for label, request in requests.items()}


def mistake_lines(found: Mapping[str, Sequence[str]], num_requests: int) -> Iterator[str]:
    """Mistakes with the labels of the runs that have them; without, where all have."""
    for mistake, labels in found.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        yield mistake if len(labels) == num_requests else f"{labels[0]}{more}: {mistake}"


def refuse(mistakes: Iterator[str]) -> None:
    """ConfigError with all of them, if there is one."""
    lines = list(mistakes)
    if lines:
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{count}, nothing was submitted\n" + "\n".join(f"  {line}" for line in lines))


def is_finished(run_folder: Path) -> bool:
    """Whether the run in this folder has written its release."""
    progress = EventTail(run_folder).read()
    return progress.phase == "finished" and progress.is_released


def share_snapshot(out: Path, recipes: Mapping[str, str], *, digest: str) -> Snapshot:
    """One copy of the code and of all recipes, for every run of the group."""
    return take_snapshot(make_private_folder(out), recipes, digest=digest, source=read_source())


def submit_member(
    member: Member, snapshot: Snapshot, *, parent: Path | None, name: str, dependency: str | None = None
) -> Submission:
    """Submits one program as a job of its own; where SLURM refuses, the folder's record is as it was before."""
    former = read_submission(member.run_folder)
    submission = record_member(member, snapshot, parent=parent)
    return submit_recorded(submission, former, name=name, dependency=dependency)


def record_member(member: Member, snapshot: Snapshot, *, parent: Path | None) -> Submission:
    """Makes the member's private folder and writes its record."""
    make_private_folder(member.run_folder)
    submission = _submission(member, snapshot, kind="run", parent=parent)
    write_submission(submission)
    return submission


def record_whole(member: Member, snapshot: Snapshot, *, kind: Kind, job_ids: Sequence[str]) -> Submission:
    """Writes the record of the sweep or pipeline itself, with the jobs of all its members."""
    submission = _submission(member, snapshot, kind=kind, job_ids=tuple(job_ids))
    write_submission(submission)
    return submission


def write_parent(out: Path, *, name: str, settings: Mapping[str, str]) -> None:
    """Names the run that all runs of the group are shown below; it stays the same when the group is submitted again."""
    path = out / PARENT_FILE
    run_id = json.loads(path.read_bytes())["run_id"] if path.is_file() else uuid.uuid4().hex
    aside = path.with_name(f".{PARENT_FILE}.{os.getpid()}")
    aside.write_text(
        json.dumps({"run_id": run_id, "name": name, "settings": dict(settings)}, indent=1) + "\n"
    )
    aside.replace(path)


def _submission(
    member: Member,
    snapshot: Snapshot,
    *,
    kind: Kind,
    job_ids: tuple[str, ...] = (),
    parent: Path | None = None,
) -> Submission:
    return Submission(
        program=member.program,
        command=member.command,
        recipe=member.recipe,
        overrides=member.overrides,
        cluster=member.cluster,
        snapshot=snapshot.path,
        commit=snapshot.commit,
        config_hash=snapshot.path.name.rpartition("-")[2],
        run_folder=member.run_folder,
        workdir=Path.cwd(),
        created=time.time(),
        user=getpass.getuser(),
        node_counts=member.node_counts,
        kind=kind,
        job_ids=job_ids,
        parent=parent,
    )
