"""Job: what every task of a submission runs: its rank of the program, as a child that gets the signals of SLURM.

batch script (first node)
  srun -> every task: Job() -> rendezvous -> child `python -m PROGRAM` -> its end is recorded -> exit code
  then  python -m launch.submission.after RUN_FOLDER  -> launch.comeback decides: done, requeue, give up
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from configs.base import ConfigError
from configs.exit_code import USAGE
from launch.comeback.attempts import RankEnd, count_ends, record_end
from launch.programs import program_command, program_environment
from launch.submission.record import Submission, attempt_folder, read_submission
from launch.submission.rendezvous import Meeting, meet
from launch.supervise import FORWARDED, INTERRUPTED, STOPPED, Command, Outcome, run_together

_OTHERS_S = 10.0
"""So long a rank that failed lets the others tell their ends before SLURM, at its exit, kills the whole step."""
_POLL_S = 0.2
_TAIL_BYTES = 8192
_LONGEST_LINE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which task of which start of which job this process is."""

    job_id: str
    """``17``, or ``17_3`` for a task of an array."""
    restart: int
    step: str
    rank: int
    num_ranks: int
    local_rank: int
    num_local_ranks: int
    node: str

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Place:
        """As srun says it."""
        num_ranks, num_nodes = int(environ["SLURM_STEP_NUM_TASKS"]), int(environ["SLURM_STEP_NUM_NODES"])
        return cls(
            job_id=job_id_of(environ),
            restart=restart_of(environ),
            step=environ["SLURM_STEP_ID"],
            rank=int(environ["SLURM_PROCID"]),
            num_ranks=num_ranks,
            local_rank=int(environ["SLURM_LOCALID"]),
            num_local_ranks=num_ranks // num_nodes,
            node=environ.get("SLURMD_NODENAME") or socket.gethostname(),
        )


def job_id_of(environ: Mapping[str, str]) -> str:
    """The id of the job that this process belongs to, as squeue shows it."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def restart_of(environ: Mapping[str, str]) -> int:
    """How often SLURM has started the job again."""
    return int(environ.get("SLURM_RESTART_COUNT", "0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A picklable callable; all it does stands in the record of the run folder."""

    run_folder: Path
    node_counts: tuple[int, ...] | None = None
    """Node counts that the run can use (see Submission); None: those in its record."""

    def __call__(self) -> None:
        """Runs this task's rank; returns when it is done or stopped and saved, else exits with the program's code."""
        received = _take_signals()
        place = Place.of(os.environ)
        try:
            end = _run(self.run_folder, place, received)
        except ConfigError as mistake:
            sys.stderr.write(f"error: {mistake}\n")
            end = _end(place, USAGE, str(mistake))
        record_end(attempt_folder(self.run_folder, place.job_id, place.restart), end)
        if end.code not in (0, STOPPED, INTERRUPTED):
            self._wait_for_others(place)
            sys.exit(end.code)

    def _wait_for_others(self, place: Place) -> None:
        """Returns when all ranks have recorded their ends, or soon."""
        folder = attempt_folder(self.run_folder, place.job_id, place.restart)
        deadline = time.monotonic() + _OTHERS_S
        while count_ends(folder) < place.num_ranks and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def rank_environment(
    environ: Mapping[str, str], submission: Submission, place: Place, meeting: Meeting
) -> dict[str, str]:
    """What torchrun would set, and the settings of threads and accelerator unless the user made them."""
    defaults = {"OMP_NUM_THREADS": str(submission.cluster.cpus_per_task), "PYTHONUNBUFFERED": "1"}
    if submission.cluster.gpus_per_node == 0:
        defaults["DS_ACCELERATOR"] = "cpu"
    return program_environment(
        {
            **defaults,
            **environ,
            "RANK": str(place.rank),
            "LOCAL_RANK": str(place.local_rank),
            "WORLD_SIZE": str(place.num_ranks),
            "LOCAL_WORLD_SIZE": str(place.num_local_ranks),
            "MASTER_ADDR": meeting.address,
            "MASTER_PORT": str(meeting.port),
        }
    )


def _take_signals() -> list[int]:
    """Replaces submitit's handlers, which would requeue a job whose other ranks are still training.

    Collects what arrives while no child is there to get it.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    for number in FORWARDED:
        signal.signal(number, note)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # comes before each SIGTERM of SLURM's, and means nothing
    return received


def _run(run_folder: Path, place: Place, received: list[int]) -> RankEnd:
    submission = read_submission(run_folder)
    if submission is None:
        raise ConfigError(
            f"node {place.node} sees no submission in {str(run_folder)!r}: name a folder on a shared file system"
        )
    if not submission.workdir.is_dir():
        raise ConfigError(
            f"node {place.node} does not see {str(submission.workdir)!r}, where the job was submitted and relative "
            "paths begin: submit from a folder on a shared file system"
        )
    os.chdir(submission.workdir)
    meeting = meet(
        attempt_folder(run_folder, place.job_id, place.restart),
        os.environ,
        rank=place.rank,
        start=f"{submission.created} step {place.step}",
    )
    if received:
        return _end(place, STOPPED, f"{signal.Signals(received[0]).name} before it began")
    module, *arguments = submission.command
    tail = _Tail()
    outcome = run_together(
        [
            Command(
                arguments=program_command(module, arguments),
                environment=rank_environment(os.environ, submission, place, meeting),
                output=tail.input,
            )
        ],
        received=received,
    )
    return _end(place, _code(outcome), tail.last_line())


def _code(outcome: Outcome) -> int:
    """The child's exit code; one that a passed-on signal ended before it could save has stopped, not failed."""
    if outcome.code - 128 in outcome.signals and outcome.code != INTERRUPTED:
        return STOPPED
    return outcome.code


def _end(place: Place, code: int, last_line: str) -> RankEnd:
    return RankEnd(
        rank=place.rank,
        num_ranks=place.num_ranks,
        node=place.node,
        code=code,
        last_line=last_line[:_LONGEST_LINE],
    )


class _Tail:
    """Passes on what a child prints, and keeps its end."""

    def __init__(self) -> None:
        source, sink = os.pipe()
        self.input = os.fdopen(sink, "wb", buffering=0)
        self._kept = b""
        self._thread = threading.Thread(target=self._pass_on, args=(source,), daemon=True)
        self._thread.start()

    def last_line(self) -> str:
        """The last line that is not empty; to be called once, when the child has ended."""
        self.input.close()
        self._thread.join(timeout=_OTHERS_S)  # NOTE: a process that outlives the child may hold the pipe open
        lines = [
            line.strip() for line in self._kept.decode(errors="replace").replace("\r", "\n").splitlines()
        ]
        return next((line for line in reversed(lines) if line), "")

    def _pass_on(self, source: int) -> None:
        while chunk := os.read(source, 1 << 16):
            os.write(sys.stdout.fileno(), chunk)
            self._kept = (self._kept + chunk)[-_TAIL_BYTES:]
        os.close(source)
