"""Scorer: a process that holds a trained supernet and scores one path after another (`pretrain.path_scores`)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.programs import program_command, program_environment


class ScorerEndedError(Exception):
    """It ended by itself; what it said before is on standard error."""

    def __init__(self, code: int) -> None:
        super().__init__(f"scoring ended with exit code {code}")
        self.code = code


class Scorer:
    """The pipe to such a process; `open_scorer` starts and ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def top1(self, path: Sequence[int]) -> float:
        """Percent of the held-out images that the supernet gets right by this path."""
        asked, answered = self._process.stdin, self._process.stdout
        if asked is None or answered is None:
            raise ValueError("the process was started without pipes")
        try:
            asked.write(json.dumps(list(path)) + "\n")
            asked.flush()
        except BrokenPipeError:
            raise ScorerEndedError(self._process.wait()) from None
        line = answered.readline()
        if not line:
            raise ScorerEndedError(self._process.wait())
        return float(json.loads(line)["top1"])


@contextmanager
def open_scorer(supernet: Path) -> Iterator[Scorer]:
    """A process for the supernet of a run folder; it ends with the block, or with this process, whose pipe it reads."""
    with (
        subprocess.Popen(
            program_command("pretrain.path_scores", [str(supernet)]),
            env=program_environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for us: the path that is being scored is finished, or scored again
        ) as process
    ):
        try:
            yield Scorer(process)
        finally:
            process.kill()
