"""Submitting to SLURM, by submitit's script and pickles; its only importer.

#SBATCH options, set-up lines, then:  srun (every task: Job)  and  launch.submission.after (once, what comes next)
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError

from configs.base import ConfigError
from configs.cluster import ClusterConfig
from launch.submission.job import Job
from launch.submission.record import read_submission
from launch.submission.refusals import explain_refusal, will_never_start
from launch.submission.rendezvous import FIRST_NODE

_JOB_VARIABLES = re.compile(r"(SLURM|SLURMD|SRUN|SBATCH|SUBMITIT)_(?!CONF$)\w+")
"""What a job that this process may itself be part of has set, and what would overrule the cluster file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What a submission is, beside its jobs and the cluster."""

    snapshot: Path
    name: str
    dependency: str | None
    max_parallel: int | None


def submit(
    jobs: Sequence[Job],
    cluster: ClusterConfig,
    folder: Path,
    *,
    snapshot: Path,
    name: str,
    dependency: str | None = None,
    max_parallel: int | None = None,
) -> list[str]:
    """Submits one job, or an array when there are several, and returns SLURM's ids: ``["17"]``, ``["17_0", "17_1"]``.

    The runs' records are written. `folder` is the private folder (RUN/launch) that gets script, pickles and logs;
    `snapshot` the code that runs; `name` what squeue shows; `dependency` as sbatch takes it (``afterok:17``);
    `max_parallel` the most tasks of an array that run at once. Raises ConfigError with SLURM's words.
    """
    refuse_without_slurm()
    task = _Task(snapshot=snapshot, name=name, dependency=dependency, max_parallel=max_parallel)
    with _outside_any_job(), _nothing_left_on_refusal(folder):
        executor = _executor(jobs, cluster, folder, task)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # where submitit says the same again
                submitted = executor.submit_array(list(jobs)) if len(jobs) > 1 else [executor.submit(jobs[0])]
        except FailedJobError as refusal:
            raise ConfigError(explain_refusal(str(refusal), cluster)) from None
        job_ids = [str(job.job_id) for job in submitted]
        whole = job_ids[0].split("_")[0]
        never = will_never_start(whole, cluster)
        if never is not None:
            subprocess.run(["scancel", whole], check=False)
            raise ConfigError(never)
    return job_ids


def script_text(
    jobs: Sequence[Job],
    cluster: ClusterConfig,
    folder: Path,
    *,
    snapshot: Path,
    name: str,
    dependency: str | None = None,
    max_parallel: int | None = None,
) -> str:
    """The script that `submit` gives to sbatch."""
    refuse_without_slurm()
    task = _Task(snapshot=snapshot, name=name, dependency=dependency, max_parallel=max_parallel)
    executor = _executor(jobs, cluster, folder, task)
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def refuse_without_slurm() -> None:
    """ConfigError where SLURM's commands are not on the PATH."""
    missing = [
        command for command in ("sbatch", "srun", "scontrol", "squeue") if shutil.which(command) is None
    ]
    if missing:
        raise ConfigError(
            f"no {' and no '.join(missing)} on the PATH: submit from a login node of the cluster (some need 'module "
            "load slurm' first), or run here with a cluster file of kind local"
        )


def _executor(jobs: Sequence[Job], cluster: ClusterConfig, folder: Path, task: _Task) -> Any:
    mounts = [folder.parent, *(job.run_folder for job in jobs), task.snapshot]
    executor = SlurmExecutor(folder=folder, python=_python(cluster, mounts, task.snapshot))
    executor.update_parameters(
        job_name=task.name,
        nodes=cluster.max_nodes,
        **_tasks_per_node(cluster),
        cpus_per_task=cluster.cpus_per_task,
        gpus_per_node=cluster.gpus_per_node or None,
        mem=cluster.memory,
        time=math.ceil((cluster.time_s or 0) / 60),
        partition=cluster.partition,
        account=cluster.account,
        qos=cluster.qos,
        constraint=cluster.constraint,
        exclude=cluster.exclude,
        dependency=task.dependency,
        signal_delay_s=cluster.grace_s,
        array_parallelism=task.max_parallel or cluster.max_parallel or len(jobs),
        wckey=None,  # submitit's own, which some sites refuse
        stderr_to_stdout=True,
        setup=_setup(jobs, cluster, task),
        teardown=_teardown(jobs),
        srun_args=_srun_arguments(cluster, mounts, task.snapshot),
        additional_parameters=_more_options(cluster, task),
    )
    return executor


def _tasks_per_node(cluster: ClusterConfig) -> dict[str, int]:
    """NOTE: SLURM (22.05) keeps the number of tasks of the first start: a job that came back would wait for as many.

    Where the number of nodes may change, it is told how many cores each has to have, and srun how many tasks.
    """
    if cluster.min_nodes != cluster.max_nodes:
        return {}
    return {"ntasks_per_node": cluster.ranks_per_node}


def _more_options(cluster: ClusterConfig, task: _Task) -> dict[str, Any]:
    more: dict[str, Any] = {
        "requeue": True,
        **{name.lstrip("-"): value for name, value in cluster.extra.items()},
    }
    if cluster.min_nodes != cluster.max_nodes:
        more["nodes"] = cluster.nodes_text
        more["mincpus"] = cluster.ranks_per_node * cluster.cpus_per_task
    if cluster.reservation is not None:
        more["reservation"] = cluster.reservation
    if task.dependency is not None:
        more["kill-on-invalid-dep"] = "yes"
    return more


def _setup(jobs: Sequence[Job], cluster: ClusterConfig, task: _Task) -> list[str]:
    """Lines before srun, which begin with the user's."""
    snapshot = shlex.quote(str(task.snapshot))
    return [
        *cluster.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()),
        # Ours first, and not what lies in the working directory: `cd` for Python 3.10, which always looks there.
        f'export PYTHONPATH={snapshot}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1',
        f"cd {snapshot}",
        # Node names need not resolve; SLURM knows the addresses, and containers have no scontrol.
        'mirada_first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export {FIRST_NODE}=$(scontrol show node \"$mirada_first\" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')",
        *_tasks(cluster, _usable_counts(jobs, cluster)),
        # A signal for the whole job is for the tasks: this shell waits for them and goes on below.
        "trap : TERM USR1 USR2",
    ]


def _usable_counts(jobs: Sequence[Job], cluster: ClusterConfig) -> set[int]:
    """Node counts that every one of the runs can use."""
    counts = set(range(cluster.min_nodes, cluster.max_nodes + 1))
    for job in jobs:
        submission = read_submission(job.run_folder) if job.node_counts is None else None
        usable = job.node_counts if submission is None else submission.node_counts
        counts &= set(usable or counts)
    return counts


def _tasks(cluster: ClusterConfig, counts: set[int]) -> list[str]:
    """Tells srun the tasks of a job whose number of nodes may change.

    It uses the most nodes that the run can use: 3 nodes may have no equal shares of the global batch.
    """
    if cluster.min_nodes == cluster.max_nodes:
        return []
    ranks = cluster.ranks_per_node
    return [
        f"for mirada_nodes in {' '.join(map(str, sorted(counts, reverse=True)))}; do",
        '  [ "$mirada_nodes" -le "$SLURM_JOB_NUM_NODES" ] && break',
        "done",
        "export SLURM_JOB_NUM_NODES=$mirada_nodes SLURM_NNODES=$mirada_nodes",
        f"export SLURM_NTASKS=$((mirada_nodes * {ranks})) SLURM_NTASKS_PER_NODE={ranks}",
        f'export SLURM_TASKS_PER_NODE="{ranks}(x$mirada_nodes)"',
    ]


def _teardown(jobs: Sequence[Job]) -> list[str]:
    """Lines behind srun: what comes next is decided outside the step, which may have died as a whole."""
    folders = " ".join(shlex.quote(str(job.run_folder)) for job in jobs)
    after = f"{shlex.quote(sys.executable)} -m launch.submission.after"
    return [
        f"mirada_runs=({folders})",
        # What comes next ignores the end of the job, and has to do so while its interpreter starts, too.
        "trap '' TERM HUP USR1 USR2",
        f'exec {after} "${{mirada_runs[${{SLURM_ARRAY_TASK_ID:-0}}]}}"',
    ]


def _srun_arguments(cluster: ClusterConfig, mounts: Sequence[Path], snapshot: Path) -> list[str]:
    # srun of SLURM 22.05 to 23.02 does not take --cpus-per-task over from sbatch.
    arguments = [f"--cpus-per-task={cluster.cpus_per_task}", "--kill-on-bad-exit=1"]
    if cluster.container is not None and cluster.container.kind == "pyxis":
        arguments += [
            f"--container-image={cluster.container.image}",
            f"--container-mounts={','.join(_mounts(cluster.container.mounts, mounts))}",
            f"--container-workdir={snapshot}",
        ]
    return arguments


def _python(cluster: ClusterConfig, mounts: Sequence[Path], snapshot: Path) -> str:
    """The interpreter of the tasks, as the shell takes it."""
    container = cluster.container
    if container is None:
        return shlex.quote(sys.executable)
    if container.kind == "pyxis":
        return shlex.quote(container.python)
    command = ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else []), "--pwd", str(snapshot)]
    command += [f"--bind={mount}" for mount in _mounts(container.mounts, mounts)]
    return shlex.join([*command, container.image, container.python])


def _mounts(wanted: Sequence[str], ours: Sequence[Path]) -> list[str]:
    """The user's, and what the tasks cannot do without, under the same path."""
    return [*wanted, *dict.fromkeys(f"{path}:{path}" for path in (*ours, Path.cwd()))]


@contextlib.contextmanager
def _nothing_left_on_refusal(folder: Path) -> Iterator[None]:
    """Takes away scripts and pickles of a submission that did not come about."""
    before = set(folder.iterdir())
    try:
        yield
    except ConfigError:
        for path in set(folder.iterdir()) - before:
            path.unlink()
        raise


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Takes out of the environment what sbatch would read from it; the job gets the rest."""
    former = {name: value for name, value in os.environ.items() if _JOB_VARIABLES.fullmatch(name)}
    for name in former:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(former)
