"""Mirada's programs as benchmarks start them: by the command line that a user types."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from benchmarks.result_file import ROOT
from launch.programs import program_command, program_environment


def run_mirada(*arguments: str) -> None:
    """`mirada` with these arguments; what it says is seen, and a failure ends the benchmark."""
    command: Sequence[str] = program_command("launch.cli", arguments)
    subprocess.run(command, env=program_environment(os.environ), cwd=ROOT, check=True)
