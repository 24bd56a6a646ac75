"""A sweep: every point of a grid is a run of its own, all of them tasks of one job array.

sweep.yaml -> points -> a request each, checked together -> OUT/<digest>/ per point -> one array -> one parent in MLflow
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.base import ConfigError
from launch.many.grid import config_digest, grid_points, overrides_of
from launch.many.group import (
    Member,
    check_all,
    is_finished,
    mistake_lines,
    record_member,
    record_whole,
    refuse,
    share_snapshot,
    write_parent,
)
from launch.many.plan import Plan
from launch.submission.here import run_here
from launch.submission.job import Job
from launch.submission.record import (
    forget_submission,
    launch_folder,
    read_submission,
    with_jobs,
    write_submission,
)
from launch.submission.request import Request
from launch.submission.slurm import script_text, submit
from launch.submission.snapshot import Snapshot, read_source
from launch.submission.validate import Checked

_STOPPED = (75, 130)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the grid as a run."""

    label: str
    checked: Checked
    digest: str
    is_done: bool
    """Its folder holds the release already."""


def check_points(plan: Plan) -> list[Point]:
    """Every point of the grid with nothing known to be wrong; ConfigError with the mistakes of all."""
    requests: dict[str, Request] = {}
    digests: dict[str, str] = {}
    wrong: dict[str, list[str]] = {}
    points = grid_points(plan.config)
    for point in points:
        try:
            request = plan.request([*overrides_of(point.settings), *plan.of_parent(point.label)], plan.out)
            digest = config_digest(request.loaded.config.model_dump(mode="json"))
            requests[point.label] = replace(request, out=plan.out / digest)
            digests[point.label] = digest
        except ConfigError as error:
            wrong.setdefault(str(error), []).append(point.label)
    refuse(mistake_lines(wrong, len(points)))
    refuse(_same_runs(digests))
    checked = check_all(requests)
    return [
        Point(label=label, checked=one, digest=digests[label], is_done=is_finished(one.request.out))
        for label, one in checked.items()
    ]


def describe_sweep(plan: Plan, points: Sequence[Point], *, max_parallel: int | None) -> str:
    """The points and the script that would go to sbatch; writes nothing."""
    waiting = [point for point in points if not point.is_done]
    width = len(points[0].digest)
    lines = [f"{point.digest:<{width}}  {point.label}{'  (finished)' * point.is_done}" for point in points]
    text = f"{len(waiting)} runs of {len(points)} points in {plan.out}\n" + "".join(f"  {x}\n" for x in lines)
    if plan.cluster.kind != "slurm" or not waiting:
        return text
    folder, source = launch_folder(plan.out), read_source()
    return f"{text}\n" + script_text(
        [Job(run_folder=point.checked.request.out) for point in waiting],
        plan.cluster,
        folder,
        snapshot=folder / f"snapshot-{source.commit}-{_digest(points)}",
        name=plan.name,
        max_parallel=max_parallel,
    )


def submit_sweep(plan: Plan, points: Sequence[Point], *, max_parallel: int | None) -> list[str]:
    """Submits the points that are not finished as one array and returns SLURM's ids; [] where all are."""
    waiting = [point for point in points if not point.is_done]
    if not waiting:
        return []
    recipes = {f"{point.digest}.yaml": point.checked.request.loaded.yaml() for point in points}
    snapshot = share_snapshot(plan.out, recipes, digest=_digest(points))
    write_parent(plan.out, name=plan.name, settings=_varied(plan))
    members = [_member(point, snapshot.recipe(f"{point.digest}.yaml")) for point in waiting]
    return submit_members(plan, members, snapshot, program="sweep", max_parallel=max_parallel)


def submit_members(
    plan: Plan,
    members: Sequence[Member],
    snapshot: Snapshot,
    *,
    program: str,
    max_parallel: int | None,
    dependency: str | None = None,
) -> list[str]:
    """Submits the members as one array, each with a record of its own; where SLURM refuses, records are as before."""
    former = {member.run_folder: read_submission(member.run_folder) for member in members}
    submissions = [record_member(member, snapshot, parent=plan.out) for member in members]
    try:
        job_ids = submit(
            [Job(run_folder=member.run_folder) for member in members],
            plan.cluster,
            launch_folder(plan.out),
            snapshot=snapshot.path,
            name=plan.name,
            dependency=dependency,
            max_parallel=max_parallel,
        )
    except ConfigError:
        for run_folder, record in former.items():
            forget_submission(run_folder, record)
        raise
    for submission, job_id in zip(submissions, job_ids, strict=True):
        write_submission(with_jobs(submission, (job_id,)))
    record_whole(_whole(plan, program), snapshot, kind="array", job_ids=job_ids)
    return job_ids


def run_sweep_here(plan: Plan, points: Sequence[Point]) -> int:
    """Runs the points that are not finished one after another; goes on after one that fails, and then returns 1."""
    plan.out.mkdir(parents=True, exist_ok=True)
    write_parent(plan.out, name=plan.name, settings=_varied(plan))
    failed = []
    for number, point in enumerate(points, start=1):
        sys.stdout.write(f"[{number}/{len(points)}] {point.label}: {point.checked.request.out}\n")
        sys.stdout.flush()
        code = 0 if point.is_done else run_here(point.checked)
        if code in _STOPPED:
            return code
        failed += [point.label] if code else []
    sys.stdout.writelines(f"failed: {label}\n" for label in failed)
    return 1 if failed else 0


def _whole(plan: Plan, program: str) -> Member:
    """The sweep or search itself, for its record; no task runs it."""
    return Member(
        label=plan.name,
        program=program,
        command=(),
        recipe=plan.file,
        overrides=plan.overrides,
        cluster=plan.cluster,
        run_folder=plan.out,
    )


def _same_runs(digests: Mapping[str, str]) -> Iterator[str]:
    """Points that are written differently and mean the same settings: they would train in one folder."""
    first: dict[str, str] = {}
    for label, digest in digests.items():
        if digest in first:
            yield f"the points {first[digest]!r} and {label!r} are the same run: take one of them out"
        first.setdefault(digest, label)


def _member(point: Point, recipe: Path) -> Member:
    request = point.checked.request
    return Member(
        label=point.label,
        program=request.program,
        command=(request.program, str(recipe), "--out", str(request.out)),
        recipe=request.recipe,
        overrides=request.overrides,
        cluster=request.cluster,
        run_folder=request.out,
        node_counts=point.checked.node_counts,
    )


def _varied(plan: Plan) -> Mapping[str, str]:
    grid = plan.config.grid or {}
    return {key: overrides_of({"": values})[0].removeprefix("=") for key, values in grid.items()}


def _digest(points: Sequence[Point]) -> str:
    return hashlib.sha256("".join(point.digest for point in points).encode()).hexdigest()[:12]
