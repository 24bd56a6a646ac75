"""The command `mirada doctor`; what it uses is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster", metavar="FILE", help="Cluster file, or the name of one in configs/cluster."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the cluster file: nodes=4.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder on the shared file system.")
    ] = Path("runs/doctor"),
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="DIR", help="Indexed shards to read; may be repeated."),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            "--tracking", metavar="URI", envvar="MLFLOW_TRACKING_URI", help="MLflow server to reach."
        ),
    ] = None,
    wait: Annotated[float, typer.Option(min=0.1, metavar="MIN", help="Longest wait for the job.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="The findings, as JSON.")] = False,
) -> None:
    """Run a short job on a cluster and say what a run would lack there; 1 if something is wrong."""
    from launch.doctor.examination import Questions, examine
    from launch.submission.request import load_cluster

    questions = Questions(
        cluster=load_cluster(cluster, overrides or []),
        out=Path.cwd() / out,
        data=tuple(data or ()),
        tracking=tracking,
        wait_s=60 * wait,
    )
    raise typer.Exit(examine(questions, as_json=as_json))


def add_commands(app: typer.Typer) -> None:
    """Adds it to the command line."""
    app.command()(doctor)
