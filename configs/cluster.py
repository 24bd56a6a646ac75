"""The cluster file: where a run takes place and what it may use; the recipe says what it is, and does not change."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from configs.base import Section

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UNITS = {"s": 1, "min": _MINUTE, "h": _HOUR, "hour": _HOUR, "hours": _HOUR, "day": _DAY, "days": _DAY}
_WRITTEN = re.compile(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(sorted(_UNITS, key=len, reverse=True))})\s*")
_SBATCH = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_OWN_OPTIONS = frozenset(
    """account array chdir constraint cpus-per-task dependency error exclude gpus-per-node job-name kill-on-invalid-dep
    mem mincpus nodes no-requeue ntasks ntasks-per-node open-mode output partition qos requeue reservation signal time
    """.split()  # noqa: SIM905 (a list of so many words in quotes is no easier to read)
)
"""Options of sbatch that Mirada writes itself."""


def seconds_of(text: str) -> int:
    """Seconds of a time limit as sbatch takes it (``90``, ``30:00``, ``2-12:00:00``), or as ``90 min``, ``36 hours``.

    Raises ValueError with examples when it is neither, or nothing.
    """
    written, parts = _WRITTEN.fullmatch(text), _SBATCH.fullmatch(text.strip())
    if written is not None:
        seconds = round(float(written[1]) * _UNITS[written[2]])
    elif parts is not None:
        days, first, second, third = (int(part or 0) for part in parts.groups())
        if parts[1] is not None:  # D-H[:M[:S]]
            seconds = days * _DAY + first * _HOUR + second * _MINUTE + third
        elif parts[4] is not None:  # H:M:S
            seconds = first * _HOUR + second * _MINUTE + third
        else:  # M[:S]
            seconds = first * _MINUTE + second
    else:
        seconds = 0
    if seconds <= 0:
        raise ValueError("write a time limit as '2-12:00:00' (days-hours), '36 hours' or '90 min'")
    return seconds


def _is_text(value: object) -> object:
    """YAML 1.1 reads an unquoted 2:00:00 as the number 7200; 90 as a number could be anything."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError("put a time limit in quotes, '2:00:00', or give it a unit, 90 min")
    return value


def _is_time(text: str) -> str:
    seconds_of(text)
    return text


TimeLimit = Annotated[str, BeforeValidator(_is_text), AfterValidator(_is_time)]


class NodeRange(Section):
    """As many nodes as can be had, within limits."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _is_ordered(self) -> NodeRange:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, more than max {self.max}: swap them")
        return self


class ContainerConfig(Section):
    """A container image that the tasks run in."""

    kind: Literal["pyxis", "apptainer"]
    """``pyxis`` gives srun ``--container-image``; ``apptainer`` puts ``apptainer exec`` before the command."""
    image: str
    mounts: list[str] = []
    """``/outside:/inside`` or ``/same``; the run folder and the working directory are always there."""
    python: str = "python3"
    """Interpreter within the image, one that has Mirada's dependencies."""


class RequeueConfig(Section):
    """How often a job comes back by itself."""

    budget: int = Field(default=20, ge=0)
    """Restarts that a run may have in all, for whatever reason."""
    same_failure: int = Field(default=3, ge=1)
    """The same failure (exit code, step and last line) so many times in a row ends the run."""
    exclude_bad_nodes: bool = True
    """A node on which a rank was lost or hung is left out of the next try."""


class ClusterConfig(Section):
    """Where the processes of a run start, and what they get."""

    kind: Literal["local", "slurm", "debug"]
    """``local``: processes on this machine, as torchrun starts them; ``debug``: one, in the foreground."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes that are not to be used: ``n[3-5],n9``."""
    reservation: str | None = None
    nodes: int | NodeRange = 1
    """A number, or ``{min: 2, max: 4}``: then a run that comes back goes on with fewer."""
    gpus_per_node: int = Field(default=0, ge=0)
    tasks_per_node: int | None = Field(default=None, ge=1)
    """Ranks on each node. Default: one per GPU, or one."""
    cpus_per_task: int = Field(default=1, ge=1)
    """Cores of each rank: its loader workers and threads share them."""
    memory: str | None = None
    """Of each node, as sbatch takes it: ``64GB``. Default: the partition's."""
    time: TimeLimit | None = None
    """Limit of one start, after which the run saves and comes back: ``2-12:00:00``, ``36 hours``, ``90 min``."""
    grace_s: int = Field(default=120, ge=1)
    """Seconds before the limit at which all ranks are asked to save and stop."""
    shared: list[str] = []
    """Folders that every node sees under the same path; what a run reads and writes has to lie below one of them.
    Default: nobody checks."""
    container: ContainerConfig | None = None
    setup: list[str] = []
    """Lines of shell that run once on the first node before the tasks start: ``module load ...``."""
    environment: dict[str, str] = {}
    """Variables of every task."""
    requeue: RequeueConfig = RequeueConfig()
    max_parallel: int | None = Field(default=None, ge=1)
    """Most tasks of a job array that run at once."""
    extra: dict[str, str | int] = {}
    """Further options of sbatch, passed through: ``{mail-type: END}``."""

    @property
    def min_nodes(self) -> int:
        """Fewest nodes that the run starts on."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes.min

    @property
    def max_nodes(self) -> int:
        """Most nodes that the run starts on."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes.max

    @property
    def nodes_text(self) -> str:
        """As sbatch takes it: ``4``, ``2-4``."""
        return (
            f"{self.min_nodes}" if self.min_nodes == self.max_nodes else f"{self.min_nodes}-{self.max_nodes}"
        )

    @property
    def ranks_per_node(self) -> int:
        """Tasks that start on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def time_s(self) -> int | None:
        """Seconds that one start may take; None where nothing limits it."""
        return None if self.time is None else seconds_of(self.time)

    @model_validator(mode="after")
    def _nodes_are_positive(self) -> ClusterConfig:
        if isinstance(self.nodes, int) and self.nodes < 1:
            raise ValueError(f"nodes is {self.nodes}, and a run needs at least 1")
        return self

    @model_validator(mode="after")
    def _slurm_has_a_limit(self) -> ClusterConfig:
        if self.kind == "slurm" and self.time is None:
            raise ValueError(
                "time is missing: SLURM asks the ranks to save before it; set time: 2-00:00:00 (days-hours)"
            )
        if self.time_s is not None and self.grace_s >= self.time_s:
            raise ValueError(
                f"grace_s is {self.grace_s} s and time is {self.time_s} s: the ranks would stop as soon as they start; "
                "raise time or lower grace_s"
            )
        return self

    @model_validator(mode="after")
    def _here_is_one_node(self) -> ClusterConfig:
        if self.kind == "slurm":
            return self
        unused = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "exclude": self.exclude,
            "reservation": self.reservation,
            "container": self.container,
            "setup": self.setup,
            "memory": self.memory,
            "extra": self.extra,
        }
        given = [name for name, value in unused.items() if value]
        if given:
            raise ValueError(
                f"kind {self.kind} runs here and has no use for {' and '.join(given)}: take it out"
            )
        if self.max_nodes > 1:
            raise ValueError(
                f"kind {self.kind} runs on this machine alone; nodes is {self.max_nodes}: set nodes: 1"
            )
        if self.kind == "debug" and self.ranks_per_node > 1:
            raise ValueError(
                f"kind debug is one process; it would be {self.ranks_per_node}: set tasks_per_node: 1"
            )
        return self

    @model_validator(mode="after")
    def _options_are_free(self) -> ClusterConfig:
        taken = sorted(name for name in self.extra if name.lstrip("-").replace("_", "-") in _OWN_OPTIONS)
        if taken:
            raise ValueError(
                f"extra holds {', '.join(map(repr, taken))}, which Mirada sets itself: use the cluster file's own keys"
            )
        return self

    @model_validator(mode="after")
    def _variables_have_names(self) -> ClusterConfig:
        wrong = [name for name in self.environment if not _NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"environment: {', '.join(map(repr, wrong))} is not the name of a variable")
        return self
