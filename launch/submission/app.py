"""`mirada launch PROGRAM RECIPE`: check, snapshot, submit; on this machine or on a cluster, by the cluster file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.attention_search.app import launch_search
from launch.many.app import add_commands as add_many

if TYPE_CHECKING:
    from launch.submission.validate import Checked

launch_app = typer.Typer(
    help="Submit a run that comes back by itself until it is finished: to SLURM, or to this machine.",
    no_args_is_help=True,
)

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file, yours or one below configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings of the recipe, and of the cluster file (nodes=4)."),
]
Cluster = Annotated[
    str,
    typer.Option("--cluster", metavar="FILE", help="Cluster file, or the name of one in configs/cluster."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run folder. Default: runs/RECIPE.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Start anew instead of resuming what the run folder holds.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted, and submit nothing.")]


@launch_app.command()
def pretrain(
    recipe: Recipe,
    cluster: Cluster,
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Train a model from a stream of labelled images."""
    _launch("pretrain", recipe, overrides, cluster=cluster, out=out, fresh=fresh, dry_run=dry_run)


@launch_app.command()
def finetune(
    recipe: Recipe,
    cluster: Cluster,
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a released checkpoint, or distil it into a student."""
    _launch("finetune", recipe, overrides, cluster=cluster, out=out, fresh=fresh, dry_run=dry_run)


add_many(launch_app)
launch_app.command("search")(launch_search)


def _launch(
    program: str,
    recipe: str,
    overrides: list[str] | None,
    *,
    cluster: str,
    out: Path | None,
    fresh: bool,
    dry_run: bool,
) -> None:
    from launch.submission.request import read_request
    from launch.submission.validate import check

    checked = check(read_request(program, recipe, overrides or [], cluster=cluster, out=out, fresh=fresh))
    if checked.request.cluster.kind != "slurm":
        from launch.submission.here import describe_here, run_here

        if dry_run:
            typer.echo(describe_here(checked), nl=False)
            return
        raise typer.Exit(run_here(checked))
    _submit(checked, dry_run=dry_run)


def _submit(checked: Checked, *, dry_run: bool) -> None:
    from launch.submission.run import dry_text, submit_run, submitted_text

    if dry_run:
        typer.echo(dry_text(checked), nl=False)
        return
    typer.echo(submitted_text(submit_run(checked), checked.notes), nl=False)
