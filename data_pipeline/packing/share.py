"""Share: which of a build's shards this task writes; told by SLURM, or by ``--task K/N``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One task of several that run the same command; alone by default."""

    index: int = 0
    count: int = 1
    sparse: bool = False
    """Nobody may hold the other places (an array such as 1,4,7): all shards are this task's, from its place on."""

    @property
    def is_alone(self) -> bool:
        """Whether nobody else writes to the same folder."""
        return self.count == 1 and not self.sparse

    def places(self, num_shards: int) -> list[int]:
        """Numbers of the shards that this task sees to, in its order."""
        if self.sparse:
            start = num_shards * self.index // self.count
            return [*range(start, num_shards), *range(start)]
        return list(range(self.index, num_shards, self.count))

    def __str__(self) -> str:
        return f"task {self.index + 1} of {self.count}"


ALONE = Share()


def read_share(task: str | None, environ: Mapping[str, str] = os.environ) -> Share:
    """The share that ``--task K/N`` names, else that of the SLURM array task and srun task this process is."""
    if task is not None:
        return _parse(task)
    array, step = _array_share(environ), _step_share(environ)
    return Share(
        index=array.index * step.count + step.index, count=array.count * step.count, sparse=array.sparse
    )


def num_cores(environ: Mapping[str, str] = os.environ) -> int:
    """Cores that this task may use: those of its CPU mask, and no more than SLURM gave it."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, int(environ.get("SLURM_CPUS_PER_TASK", allowed))))


def _parse(task: str) -> Share:
    match = re.fullmatch(r"(\d+)/(\d+)", task.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise DataError(f"--task {task!r}: K/N with K from 1 to N is needed, such as 2/8")
    return Share(index=int(match[1]) - 1, count=int(match[2]))


def _array_share(environ: Mapping[str, str]) -> Share:
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return ALONE
    number, count, first, last, step = (
        int(environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("COUNT", 1), ("MIN", 0), ("MAX", 0), ("STEP", 1))
    )
    # An array of one is most often one task of an earlier array, run again beside those that still run.
    if count > 1 and (last - first) // step + 1 == count:
        return Share(index=(number - first) // step, count=count)
    return Share(index=number - first, count=last - first + 1, sparse=True)


def _step_share(environ: Mapping[str, str]) -> Share:
    # NOTE: not SLURM_NTASKS, which a batch script has too, outside of any srun.
    count = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    return Share(index=int(environ["SLURM_PROCID"]), count=count) if count > 1 else ALONE
