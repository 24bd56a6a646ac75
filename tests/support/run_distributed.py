"""Starts a Python program as several real ranks over gloo, the way torchrun would, and waits for them or kills them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]

_TIMEOUT_S = 600.0
"""For what takes seconds: to import PyTorch and DeepSpeed in every rank takes minutes where much else is running."""


@dataclass
class Ranks:
    """Running ranks of one program; their output is kept per rank."""

    processes: list[subprocess.Popen[str]]
    outputs: list[str] = field(default_factory=list)

    def wait(self, timeout_s: float = _TIMEOUT_S) -> list[int]:
        """Exit codes in rank order; after the timeout all are killed and the test fails with their output."""
        deadline = time.monotonic() + timeout_s
        try:
            for process in self.processes:
                self.outputs.append(process.communicate(timeout=max(1.0, deadline - time.monotonic()))[0])
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise AssertionError(f"ranks did not end within {timeout_s} s:\n{error.output}") from error
        return [process.returncode for process in self.processes]

    def wait_until(self, happened: Callable[[], bool], timeout_s: float = _TIMEOUT_S) -> None:
        """Returns when `happened`; fails when a rank ends before."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            ended = [process for process in self.processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"did not happen; a rank said:\n{self.processes[0].communicate()[0]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL to all, and waits for their end."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


def start_ranks(arguments: Sequence[str], *, world_size: int = 2, **environ: str) -> Ranks:
    """Starts ``python ARGUMENTS`` as `world_size` ranks on this machine."""
    shared = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        **environ,
    }
    return Ranks(
        [
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]
    )


def run_ranks(arguments: Sequence[str], *, world_size: int = 2, timeout_s: float = _TIMEOUT_S) -> list[str]:
    """Runs the program to its end on all ranks and returns what each said; fails unless all exit with 0."""
    ranks = start_ranks(arguments, world_size=world_size)
    codes = ranks.wait(timeout_s)
    assert codes == [0] * world_size, f"exit codes {codes}\n" + "\n---\n".join(ranks.outputs)
    return ranks.outputs
