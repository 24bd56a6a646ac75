"""`mirada status`: a table of runs, once, again and again, or as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.following.run_state import RunState, RunWatch, all_final, format_seconds

_PIPE_WIDTH = 240
_COLOURS = {
    "running": "green",
    "finished": "bold green",
    "waiting": "cyan",
    "requeued": "cyan",
    "starting": "cyan",
    "stopping": "yellow",
    "stopped": "yellow",
    "cancelled": "yellow",
    "silent": "red",
}
"""All other states are bad news."""


def show_status(folders: Sequence[Path], *, as_json: bool) -> None:
    """Prints how the runs stand now."""
    watch = RunWatch(folders)
    states = watch.look()
    if as_json:
        sys.stdout.write(json.dumps([describe(state) for state in states], indent=1) + "\n")
    else:
        _console().print(status_view(states, problem=watch.problem))


def watch_status(folders: Sequence[Path], *, every_s: float, as_json: bool) -> None:
    """Shows how the runs stand until none of them changes by itself any more, or until Ctrl-C.

    Where nobody looks (a pipe, a file), and as JSON, there is a line for each run whenever its state or step changed.
    """
    watch, console = RunWatch(folders), _console()
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not console.is_terminal:
            _print_changes(watch, every_s=every_s, as_json=as_json)
        else:
            _draw_again_and_again(watch, console, every_s=every_s)


def describe(state: RunState) -> dict[str, Any]:
    """A run as JSON; what is not known is null, times are seconds since 1970."""
    progress, job = state.progress, state.job
    return {
        "run": str(state.folder),
        "state": state.state,
        "why": state.why,
        "step": progress.step,
        "total_steps": progress.total_steps,
        "loss": progress.loss,
        "images_per_s": progress.images_per_s,
        "seconds_left": None if progress.seconds_left is None else round(progress.seconds_left, 1),
        "saved_step": progress.saved_step,
        "restarts": state.restarts,
        "ranks": progress.ranks,
        "nodes": _nodes(state),
        "job_id": state.job_id or None,
        "slurm_state": None if job is None else job.state,
        "time_left_of_job": None if job is None else job.time_left or None,
        "started": progress.start_time,
        "last_event": progress.event_time,
        "released": progress.is_released,
        "command": progress.command,
    }


def status_view(states: Sequence[RunState], *, problem: str = "") -> Group:
    """The table, and below it what the user should know about it."""
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("run", overflow="fold", min_width=8)
    table.add_column("state", no_wrap=True)
    for heading in ("step", "loss", "images/s", "left", "restarts"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("job", no_wrap=True)
    table.add_column("nodes", overflow="fold", min_width=5)
    for state in states:
        table.add_row(*_cells(state))
    reasons = [Text(f"{state.folder}: {state.why}", style="dim") for state in states if state.why]
    notes = [Text(problem, style="yellow")] if problem else []
    return Group(table, *reasons, *notes)


def _cells(state: RunState) -> list[str | Text]:
    progress = state.progress
    left = (
        ""
        if progress.seconds_left is None or state.state != "running"
        else format_seconds(progress.seconds_left)
    )
    return [
        str(state.folder),
        Text(state.state, style=_COLOURS.get(state.state, "bold red")),
        _steps(state),
        "" if progress.loss is None else f"{progress.loss:.4f}",
        "" if progress.images_per_s is None or state.is_final else f"{progress.images_per_s:,.0f}",
        left,
        str(state.restarts) if state.restarts else "",
        state.job_id,
        _nodes(state),
    ]


def _steps(state: RunState) -> str:
    progress = state.progress
    if progress.step is None:
        return ""
    if not progress.total_steps:
        return f"{progress.step:,}"
    percent = 100 * progress.step / progress.total_steps
    return f"{progress.step:,}/{progress.total_steps:,} {percent:3.0f}%"


def _nodes(state: RunState) -> str:
    if state.job is not None:
        return state.job.nodes
    return "" if state.submission is not None and state.submission.job_ids else state.progress.host


def _draw_again_and_again(watch: RunWatch, console: Console, *, every_s: float) -> None:
    states = watch.look()
    with Live(status_view(states, problem=watch.problem), console=console, auto_refresh=False) as live:
        while not all_final(states):
            time.sleep(every_s)
            states = watch.look()
            live.update(status_view(states, problem=watch.problem), refresh=True)


def _print_changes(watch: RunWatch, *, every_s: float, as_json: bool) -> None:
    shown: dict[Path, tuple[object, ...]] = {}
    while True:
        states = watch.look()
        for state in states:
            change = (state.state, state.why.partition(", starts in")[0], state.progress.step)
            if shown.get(state.folder) != change:
                shown[state.folder] = change
                sys.stdout.write((json.dumps(describe(state)) if as_json else _line(state)) + "\n")
        sys.stdout.flush()
        if all_final(states):
            return
        time.sleep(every_s)


def _line(state: RunState) -> str:
    progress = state.progress
    parts = [f"{state.folder}: {state.state}"]
    if state.why:
        parts[0] += f" ({state.why})"
    if progress.step is not None:
        parts.append(f"step {_steps(state)}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.seconds_left is not None and state.state == "running":
        parts.append(f"{format_seconds(progress.seconds_left)} left")
    return "  ".join(parts)


def _console() -> Console:
    """A terminal's own width; a pipe or a file has none, and gets rows that are not folded."""
    console = Console(highlight=False, markup=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(highlight=False, markup=False, width=_PIPE_WIDTH)
