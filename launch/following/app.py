"""The commands that follow runs: status, logs, cancel, requeue. What they use is imported when one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="DIR...", help="Run folders, or folders that hold runs. Default: runs."),
]
Named = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Run folders, or folders that hold runs.")
]


def status(
    folders: Folders = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again and again, until all runs have ended.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.5, metavar="S", help="Seconds between two looks.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Every number, as JSON.")] = False,
) -> None:
    """Show how runs stand: state, step, loss, images/s, time left, restarts, nodes."""
    from launch.following.run_folders import find_runs
    from launch.following.status import show_status, watch_status

    found = find_runs(folders or [Path("runs")])
    if watch:
        watch_status(found, every_s=every, as_json=as_json)
    else:
        show_status(found, as_json=as_json)


def logs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Run folder.")],
    rank: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Whose; may be repeated. Default: 0.")
    ] = None,
    lines: Annotated[int, typer.Option(min=0, metavar="N", help="Last lines of each file.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Show the end of what a run's ranks said, in their logs and to SLURM."""
    from launch.following.logs import show_logs
    from launch.following.run_folders import single_run

    show_logs(single_run(folder), ranks=rank or [0], num_lines=lines, follow=follow)


def cancel(
    folders: Named,
    now: Annotated[bool, typer.Option("--now", help="Without saving; the last checkpoint stays.")] = False,
) -> None:
    """Stop runs for good: all ranks save at the same step first."""
    from launch.following.cancel import cancel as cancel_runs
    from launch.following.run_folders import find_runs

    raise typer.Exit(cancel_runs(find_runs(folders), save=not now))


def requeue(folders: Named) -> None:
    """Send runs back to the queue: those that train save first, those that ended are submitted again."""
    from launch.following.requeue import requeue as requeue_runs
    from launch.following.run_folders import find_runs

    requeue_runs(find_runs(folders))


def add_commands(app: typer.Typer) -> None:
    """Adds them to the command line."""
    for command in (status, logs, cancel, requeue):
        app.command()(command)
