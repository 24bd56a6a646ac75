"""`mirada launch sweep` and `pipeline`: many runs by one command; `evaluate` and others that train nothing: one job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launch.many.plan import Plan

Cluster = Annotated[
    str,
    typer.Option("--cluster", metavar="FILE", help="Cluster file, or the name of one in configs/cluster."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted, and submit nothing.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder of all the runs. Default: runs/FILE.")
]


_PROGRAMS = {
    "teach": "Ask a teacher about every crop once and keep its answers, as a job.",
    "evaluate": "Measure released checkpoints, as a job.",
    "attend": "Draw where released checkpoints look, as a job.",
    "export": "Write a released checkpoint in another form, as a job.",
    "report": "Write a report of run folders, as a job.",
}


def add_commands(app: typer.Typer) -> None:
    """Gives `mirada launch` the commands of this file."""
    app.command()(sweep)
    app.command()(pipeline)
    for name, help_text in _PROGRAMS.items():
        app.command(name, help=help_text, context_settings={"ignore_unknown_options": True})(_launcher(name))


def sweep(
    file: Annotated[
        str, typer.Argument(metavar="SWEEP", help="YAML file with a grid, or with a search space.")
    ],
    cluster: Cluster,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of every run, and of the cluster file (nodes=4)."),
    ] = None,
    out: Out = None,
    max_parallel: Annotated[
        int | None, typer.Option("--max-parallel", min=1, metavar="N", help="Most runs at the same time.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run every point of a grid, or the trials of a search, as one job array; run again for what is missing."""
    from launch.many.plan import read_plan

    plan = read_plan(file, overrides or [], cluster=cluster, out=out)
    if plan.config.search is not None:
        _search(plan, max_parallel=max_parallel, dry_run=dry_run)
    else:
        _grid(plan, max_parallel=max_parallel, dry_run=dry_run)


def pipeline(
    file: Annotated[str, typer.Argument(metavar="PIPELINE", help="YAML file with stages.")],
    cluster: Cluster,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the cluster file (nodes=4).")
    ] = None,
    out: Out = None,
    dry_run: DryRun = False,
) -> None:
    """Run programs that build on each other's results, as jobs that wait for one another."""
    from launch.many.chain import check_pipeline
    from launch.many.chain_jobs import describe_pipeline, run_pipeline_here, submit_pipeline

    chain = check_pipeline(file, overrides or [], cluster=cluster, out=out)
    if dry_run:
        typer.echo(describe_pipeline(chain), nl=False)
    elif chain.cluster.kind != "slurm":
        raise typer.Exit(run_pipeline_here(chain, again=_again()))
    else:
        tell(submit_pipeline(chain), chain.out)


def _launcher(name: str) -> Callable[..., None]:
    """The command for a program without a recipe."""

    def launch(
        words: Annotated[
            list[str],
            typer.Argument(
                metavar="ARGUMENT...",
                help="Those of the program, behind -- where an option has the same name here, and settings of the "
                "cluster file (nodes=2).",
            ),
        ],
        cluster: Cluster,
        out: Annotated[
            Path | None,
            typer.Option("--out", metavar="DIR", help="Folder of the submission. Default: runs/PROGRAM."),
        ] = None,
        dry_run: DryRun = False,
    ) -> None:
        from launch.many.program import describe_program, read_program, run_program_here, submit_program

        program = read_program(name, words, cluster=cluster, out=out)
        if dry_run:
            typer.echo(describe_program(program), nl=False)
        elif program.cluster.kind != "slurm":
            raise typer.Exit(run_program_here(program, again=_again()))
        else:
            tell({name: submit_program(program).job_ids[0]}, program.out)

    return launch


def _grid(plan: Plan, *, max_parallel: int | None, dry_run: bool) -> None:
    from launch.many.sweep import check_points, describe_sweep, run_sweep_here, submit_sweep

    points = check_points(plan)
    if dry_run:
        typer.echo(describe_sweep(plan, points, max_parallel=max_parallel), nl=False)
    elif plan.cluster.kind != "slurm":
        raise typer.Exit(run_sweep_here(plan, points))
    else:
        job_ids = submit_sweep(plan, points, max_parallel=max_parallel)
        labels = [point.label for point in points if not point.is_done]
        tell(dict(zip(labels, job_ids, strict=True)), plan.out)


def _search(plan: Plan, *, max_parallel: int | None, dry_run: bool) -> None:
    from launch.many.search import check_search, describe_search, run_search_here, submit_search

    checked = check_search(plan)
    if dry_run:
        typer.echo(describe_search(plan, checked), nl=False)
    elif plan.cluster.kind != "slurm":
        raise typer.Exit(run_search_here(plan, checked, again=_again()))
    else:
        job_ids = submit_search(plan, checked, max_parallel=max_parallel)
        tell({f"worker {number}": job_id for number, job_id in enumerate(job_ids)}, plan.out)


def tell(job_ids: Mapping[str, str], out: Path) -> None:
    """What was submitted, and how to follow it."""
    for label, job_id in job_ids.items():
        typer.echo(f"job {job_id:<12}{label}")
    folder = shlex.quote(str(out))
    nothing = "" if job_ids else "nothing to submit, everything is finished; "
    typer.echo(f"{nothing}follow with: mirada status {folder}")


def _again() -> str:
    return shlex.join(["mirada", *sys.argv[1:]])
