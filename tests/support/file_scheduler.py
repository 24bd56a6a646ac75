"""FileScheduler: under xdist the tests of a file run on one worker, and all files that bring up a SLURM on one.

Fixtures of a module are made once, and jobs of two clusters do not wait for each other's cores. NOTE: xdist 3.8 says
groups in the names of tests, which pytest 9 no longer lets it change: its own `--dist=loadgroup` groups nothing there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[2]


class FileScheduler(LoadScopeScheduling):
    """Gives whole files to the workers, in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "slurm" if _brings_up_slurm(file) else file


@cache
def _brings_up_slurm(file: str) -> bool:
    return "pytest.mark.slurm" in (ROOT / file).read_text()
