"""An examination: what can be seen from here, then what the ranks of a short job see; a line for each check.

login node -> [snapshot -> sbatch -> engine.doctor on every rank -> findings.json] or [engine.doctor on local ranks]
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.base import ConfigError
from configs.cluster import ClusterConfig
from configs.finding import Finding, read_findings
from launch.doctor.job import run_job
from launch.doctor.login import look_from_here
from launch.local import run_ranks

PROGRAM = "engine.doctor"
_FINDINGS = "findings.json"
_VISIBLE_S = 60.0
_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What is to be found out."""

    cluster: ClusterConfig
    out: Path
    """Run folder of the examination, absolute; on the file system that all nodes should share."""
    data: tuple[str, ...]
    """Folders of indexed shards."""
    tracking: str | None
    wait_s: float
    """Longest time for the job to start and end."""

    @property
    def command(self) -> tuple[str, ...]:
        """Module and arguments for every rank."""
        cluster = self.cluster
        return (
            PROGRAM,
            *("--out", str(self.out / _FINDINGS), "--shared", str(self.out)),
            *(word for location in self.data for word in ("--data", location)),
            *(("--tracking", self.tracking) if self.tracking else ()),
            *("--cpus", str(cluster.cpus_per_task), "--gpus", str(cluster.gpus_per_node)),
            *("--ranks", str(cluster.ranks_per_node)),
        )


def examine(questions: Questions, *, as_json: bool) -> int:
    """Examines, prints each finding as soon as it is known, and returns 1 if one of them is a failure."""
    found = []
    for finding in _findings(questions):
        found.append(finding)
        if not as_json:
            sys.stdout.write(f"{finding}\n")
            sys.stdout.flush()
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in found], indent=1) + "\n")
    return int(any(finding.level == "fail" for finding in found))


def _findings(questions: Questions) -> Iterator[Finding]:
    is_hopeless = False
    for finding in look_from_here(questions.cluster, out=questions.out, tracking=questions.tracking):
        is_hopeless = is_hopeless or finding.level == "fail"
        yield finding
    if is_hopeless:  # a job would fail for the same reason, after waiting in the queue
        return
    path = questions.out / _FINDINGS
    path.unlink(missing_ok=True)
    if questions.cluster.kind == "slurm":
        problem = run_job(questions.cluster, questions.command, out=questions.out, wait_s=questions.wait_s)
    else:
        problem = _run_here(questions)
    if problem or not _appears(path):
        said = problem or f"it ended well, and {str(path)!r} is not there"
        advice = "the end of its log is above" if problem else "is it on a file system that all nodes share?"
        yield Finding(check="job", level="fail", said=said, advice=advice)
    else:
        yield from read_findings(path)


def _appears(path: Path) -> bool:
    """Waits for a file that another node has written: this one may remember for a while that it was not there."""
    deadline = time.monotonic() + _VISIBLE_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return path.exists()


def _run_here(questions: Questions) -> str:
    """Lets local ranks examine; returns what went wrong."""
    cluster = questions.cluster
    if cluster.gpus_per_node and cluster.kind == "debug":
        raise ConfigError("kind debug is one process: leave gpus_per_node out, or use kind local")
    questions.out.mkdir(parents=True, exist_ok=True)
    os.environ.update(cluster.environment)
    module, *arguments = questions.command
    code = run_ranks(
        module, arguments, num_ranks=cluster.ranks_per_node, out=questions.out, again="mirada doctor"
    )
    return f"the ranks ended with exit code {code}" if code else ""
