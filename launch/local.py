"""Local ranks of a training program: how many, in which environment, and what is said when they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

from configs.exit_code import USAGE
from launch.programs import program_command, program_environment
from launch.submission.rendezvous import free_port
from launch.supervise import INTERRUPTED, STOPPED, Command, run_together

_MAX_CPU_RANKS = 2
_TAIL_LINES = 20


def is_inside_job(environment: Mapping[str, str]) -> bool:
    """Whether torchrun or srun started this process as one of several: then it is a rank, and starts none."""
    return "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def count_ranks(requested: int | Literal["auto"]) -> int:
    """``auto`` is one rank per visible GPU, else one per core up to 2."""
    if requested != "auto":
        return requested
    return count_gpus(os.environ) or min(_MAX_CPU_RANKS, count_cores())


def count_gpus(environment: Mapping[str, str]) -> int:
    """GPUs this process may use, without importing torch (which takes seconds)."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    present = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None or present == 0:
        return present
    return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])


def count_cores() -> int:
    """Cores this process is allowed to run on, which a container or SLURM may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_ranks(
    module: str,
    arguments: Sequence[str],
    *,
    num_ranks: int,
    again: str,
    out: Path | None = None,
    grace_s: float = 15.0,
) -> int:
    """Runs a program on `num_ranks` local ranks and returns its exit code; `again` is the command that resumes it.

    Rank 0 prints here. What the others print is appended to their logs when they end, since until the program has
    taken the run folder `out` nobody may write in it; a program without one leaves none.
    """
    port, has_gpu = free_port(), count_gpus(os.environ) > 0
    with contextlib.ExitStack() as files:
        outputs = [None if rank == 0 else files.enter_context(_temporary_file()) for rank in range(num_ranks)]
        outcome = run_together(
            [
                Command(
                    arguments=program_command(module, arguments),
                    environment=rank_environment(
                        os.environ, rank=rank, num_ranks=num_ranks, port=port, has_gpu=has_gpu
                    ),
                    output=output,
                )
                for rank, output in enumerate(outputs)
            ],
            grace_s=grace_s,
        )
        texts = [_read_all(output) for output in outputs]
    if out is not None:
        for rank, text in enumerate(texts):
            _append_to_log(out, rank, text)
    if outcome.interrupted:
        _say(f"interrupted; next start resumes: {again}")
        return INTERRUPTED
    if outcome.code == STOPPED:
        _say(f"stopped; next start resumes: {again}")
    elif (
        outcome.first_failure and outcome.codes[0] != USAGE
    ):  # a mistake all ranks found is told once, by rank 0
        _show_tail(outcome.first_failure, outcome.code, texts[outcome.first_failure])
    return outcome.code


def rank_environment(
    environment: Mapping[str, str], *, rank: int, num_ranks: int, port: int, has_gpu: bool
) -> dict[str, str]:
    """What torchrun would set, and the settings of threads and accelerator unless the user made them."""
    defaults = {"OMP_NUM_THREADS": str(max(1, count_cores() // num_ranks)), "PYTHONUNBUFFERED": "1"}
    if not has_gpu:
        defaults["DS_ACCELERATOR"] = "cpu"
    return program_environment(
        {
            **defaults,
            **environment,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )


def _temporary_file() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="mirada-rank-")


def _read_all(output: IO[bytes] | None) -> str:
    if output is None:
        return ""
    output.seek(0)
    return output.read().decode(errors="replace")


def _append_to_log(out: Path, rank: int, text: str) -> None:
    """Adds to a log that the program began; a run that was refused has none, and gets none."""
    log = out / "logs" / f"rank_{rank}.log"
    if text and log.is_file():
        # On a full disk the run has ended with that message already.
        with contextlib.suppress(OSError), log.open("a") as lines:
            lines.write(text)


def _show_tail(rank: int, code: int, text: str) -> None:
    """What a failed rank said last: the reason is there, not in rank 0's output."""
    _say(f"rank {rank} ended with exit code {code}; the end of what it printed:")
    for line in text.splitlines()[-_TAIL_LINES:]:
        _say(f"  {line}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
