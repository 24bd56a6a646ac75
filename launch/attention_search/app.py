"""`mirada search` and `mirada launch search`: which attention, in which stage of a ResNet, under a FLOPs limit."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="YAML file with model.attention.search, yours or one below configs/."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder of the search. Default: runs/RECIPE.")
]
MaxFlops = Annotated[
    float | None,
    typer.Option(
        "--max-flops", min=1, metavar="N", help="Most operations of an image's forward. Default: any."
    ),
]
Trials = Annotated[
    int, typer.Option("--trials", min=1, metavar="N", help="Networks to score, of all workers.")
]


def search(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Out = None,
    max_flops: MaxFlops = None,
    trials: Trials = 50,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", min=1, metavar="N", help="Processes that train. Default: train.ranks."),
    ] = None,
) -> None:
    """Search which attention each stage of a ResNet has: a supernet, a study, a recipe; run again to go on."""
    from launch.attention_search.search import measure_space, read_search, run_here

    wanted = read_search(recipe, overrides or [], out=out, trials=trials, workers=1, max_flops=max_flops)
    space = measure_space(wanted)
    again = shlex.join(["mirada", *sys.argv[1:]])
    raise typer.Exit(run_here(wanted, space, ranks=ranks, again=again))


def launch_search(
    recipe: Recipe,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster", metavar="FILE", help="Cluster file, or the name of one in configs/cluster."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings of the recipe, and of the cluster file (nodes=4)."
        ),
    ] = None,
    out: Out = None,
    max_flops: MaxFlops = None,
    trials: Trials = 50,
    workers: Annotated[
        int, typer.Option("--workers", min=1, metavar="N", help="Tasks of the array that score networks.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted, and submit nothing.")
    ] = False,
) -> None:
    """Search the attention of a ResNet's stages: a job that trains the supernet, and an array that scores networks."""
    from launch.attention_search.search import measure_space, run_here
    from launch.attention_search.submission import (
        check_supernet,
        describe_search,
        read_launched,
        submit_search,
    )
    from launch.many.app import tell

    wanted, place = read_launched(
        recipe,
        overrides or [],
        cluster=cluster,
        out=out,
        trials=trials,
        workers=workers,
        max_flops=max_flops,
    )
    checked = check_supernet(wanted, place)
    space = measure_space(wanted)
    if place.kind == "slurm":
        if dry_run:
            typer.echo(describe_search(wanted, space, checked), nl=False)
        else:
            tell(submit_search(wanted, space, checked), wanted.out)
    elif dry_run:
        typer.echo(
            f"{len(space.members()):,} networks, {trials} of them scored on this machine in {wanted.out}"
        )
    else:
        again = shlex.join(["mirada", *sys.argv[1:]])
        ranks = place.tasks_per_node or place.gpus_per_node or None
        raise typer.Exit(run_here(wanted, space, ranks=ranks, again=again))
