"""Runs on this machine: kind ``local``, ranks as torchrun starts them; ``debug``, one process in the foreground."""

from __future__ import annotations

import os
import shlex

from launch.local import count_ranks, run_ranks
from launch.programs import become_program
from launch.submission.validate import Checked


def run_here(checked: Checked) -> int:
    """Runs to the end and returns the exit code; for ``debug`` this process becomes the program."""
    request = checked.request
    os.environ.update(request.cluster.environment)
    if request.cluster.kind == "debug":
        become_program(request.program, _arguments(checked))
    again = ["mirada", request.program, request.recipe, *request.overrides, "--out", str(request.out)]
    return run_ranks(
        request.program,
        _arguments(checked),
        num_ranks=_num_ranks(checked),
        out=request.out,
        again=shlex.join(again),
    )


def describe_here(checked: Checked) -> str:
    """What `run_here` would do."""
    ranks = "1 process" if checked.request.cluster.kind == "debug" else f"{_num_ranks(checked)} ranks"
    return f"{ranks} on this machine: {shlex.join([checked.request.program, *_arguments(checked)])}\n"


def _arguments(checked: Checked) -> list[str]:
    request = checked.request
    fresh = ["--fresh"] if request.fresh else []
    return [request.recipe, *request.overrides, "--out", str(request.out), *fresh]


def _num_ranks(checked: Checked) -> int:
    """The cluster file's, else as many as the recipe asks for."""
    cluster = checked.request.cluster
    given = cluster.tasks_per_node or cluster.gpus_per_node
    return given or count_ranks(checked.request.loaded.config.train.ranks)
