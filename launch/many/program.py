"""Program: one that is no training (teach, evaluate, attend, export, report), as a job of its own.

mirada launch evaluate RUN --data DATA --cluster FILE nodes=1 -> words sorted and checked -> a job, or run here
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.base import ConfigError
from configs.cluster import ClusterConfig
from launch.local import run_ranks
from launch.many.group import Member, refuse, share_snapshot, submit_member
from launch.submission.folder import refuse_foreign
from launch.submission.job import Job
from launch.submission.record import Submission, launch_folder
from launch.submission.releases import release_mistakes
from launch.submission.request import load_cluster
from launch.submission.slurm import refuse_without_slurm, script_text
from launch.submission.snapshot import read_source
from launch.submission.validate import count_samples, live_job

MODULES = {
    "teach": "finetune.teach",
    "evaluate": "finetune.evaluation",
    "attend": "finetune.attend",
    "export": "finetune.export",
    "report": "engine.results.report",
}
"""Programs that are no trainings, and what a task of their job runs."""
ONE_PROCESS = ("nodes=1", "tasks_per_node=1", "gpus_per_node=0")
"""Of a cluster file, unless the user says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that is to run, with nothing known to be wrong."""

    name: str
    arguments: tuple[str, ...]
    """As on its own command line."""
    cluster: ClusterConfig
    out: Path
    """Folder of the submission, absolute."""

    @property
    def member(self) -> Member:
        """What every task runs."""
        return Member(
            label=self.name,
            program=self.name,
            command=(MODULES[self.name], *self.arguments),
            recipe="",
            overrides=self.arguments,
            cluster=self.cluster,
            run_folder=self.out,
        )

    @property
    def digest(self) -> str:
        """Of what it does, for the snapshot's name."""
        return hashlib.sha256("\n".join((self.name, *self.arguments)).encode()).hexdigest()[:12]


def read_program(name: str, words: Sequence[str], *, cluster: str, out: Path | None) -> Program:
    """Tells the program's words from settings of the cluster file (``nodes=2``); ConfigError with all mistakes."""
    settings = [word for word in words if _is_of_cluster(word)]
    arguments = tuple(word for word in words if not _is_of_cluster(word))
    place = load_cluster(cluster, [*ONE_PROCESS, *(setting.removeprefix("cluster.") for setting in settings)])
    folder = Path.cwd() / (out or Path("runs") / name)
    refuse(_mistakes(name, arguments, place, folder))
    return Program(name=name, arguments=arguments, cluster=place, out=folder)


def argument_mistakes(name: str, arguments: Sequence[str], promised: Collection[Path] = ()) -> Iterator[str]:
    """What can be known to be wrong with a program's own words before it runs: checkpoints and data that are not there.

    `promised` are run folders whose releases will have been written by then.
    """
    if name == "evaluate":
        checkpoints = _before_options(arguments)
        numbered = {f"checkpoint {number}": text for number, text in enumerate(checkpoints, start=1)}
        yield from release_mistakes(numbered, promised)
        if not checkpoints:
            yield "evaluate: name at least one run folder or release, before the options"
    for location in _values(arguments, "--data"):
        try:
            count_samples(location)
        except ConfigError as error:
            yield f"--data: {error}"


def describe_program(program: Program) -> str:
    """The script that would go to sbatch, or the command that would run here; writes nothing."""
    command = shlex.join([program.name, *program.arguments])
    if program.cluster.kind != "slurm":
        return f"{program.cluster.ranks_per_node} process(es) on this machine: {command}\n"
    source = read_source()
    folder = launch_folder(program.out)
    script = script_text(
        [Job(run_folder=program.out)],
        program.cluster,
        folder,
        snapshot=folder / f"snapshot-{source.commit}-{program.digest}",
        name=program.out.name,
    )
    return f"{command}\n\n{script}"


def submit_program(program: Program) -> Submission:
    """Submits it; where SLURM refuses, the folder's record is as it was before."""
    snapshot = share_snapshot(program.out, {}, digest=program.digest)
    return submit_member(program.member, snapshot, parent=None, name=program.out.name)


def run_program_here(program: Program, *, again: str) -> int:
    """Runs it on this machine and returns its exit code."""
    os.environ.update(program.cluster.environment)
    return run_ranks(
        MODULES[program.name],
        program.arguments,
        num_ranks=program.cluster.ranks_per_node,
        out=program.out,
        again=again,
    )


def _mistakes(name: str, arguments: Sequence[str], place: ClusterConfig, folder: Path) -> Iterator[str]:
    yield from argument_mistakes(name, arguments)
    if place.kind != "slurm":
        return
    try:
        refuse_without_slurm()
        refuse_foreign(folder)
        yield from live_job(folder)
    except ConfigError as error:
        yield str(error)


def _is_of_cluster(word: str) -> bool:
    """A setting of the cluster file; none of these programs takes words of this form."""
    key, equals, _ = word.partition("=")
    return bool(equals) and (key.startswith("cluster.") or key in ClusterConfig.model_fields)


def _before_options(arguments: Sequence[str]) -> list[str]:
    names = [index for index, word in enumerate(arguments) if word.startswith("-")]
    return list(arguments[: names[0]] if names else arguments)


def _values(arguments: Sequence[str], option: str) -> Iterator[str]:
    """What follows an option, as a word of its own or behind ``=``."""
    for index, word in enumerate(arguments):
        if word == option and index + 1 < len(arguments):
            yield arguments[index + 1]
        elif word.startswith(f"{option}="):
            yield word.partition("=")[2]
