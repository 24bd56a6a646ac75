"""``mirada data``: build, index, verify and inspect shards, and find duplicates in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.exit_code import run_main
from data_pipeline.inspection.commands import duplicates, verify
from data_pipeline.inspection.inspect_command import inspect
from data_pipeline.order.command import order
from data_pipeline.packing.command import build
from data_pipeline.packing.options import DESCRIPTION
from data_pipeline.wording import sizes

app = typer.Typer(
    help="Turn images into indexed tar shards, and look after them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command(help=DESCRIPTION)(build)


@app.command()
def index(
    location: Annotated[
        str,
        typer.Argument(
            metavar="LOCATION",
            help="Folder of shards, local or remote, or their names: https://host/name-{000..099}.tar",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the index, where the shards' own must not be written.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Name of the split; default: as indexed before, else train.")
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="File with one name per line for the labels 0, 1, 2 ...")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Shards read at once; default: one per core, 32 of remote ones.")
    ] = None,
) -> None:
    """Index shards that somebody else made, without changing or moving them; of remote ones headers are fetched."""
    from data_pipeline.packing.corpus import read_names
    from data_pipeline.reindex import index_shards

    names = read_names(class_names, option="--class-names") if class_names else None
    made = index_shards(location, out, classes=names, split=split, workers=workers)
    typer.echo(f"{made.folder}: {sizes(made.num_samples, len(made.classes), len(made.shards))}")
    if made.ignored:
        counted = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(made.ignored.items()))
        typer.echo(f"ignored, for they belong to no sample: {counted}")


app.command()(verify)
app.command()(duplicates)
app.command()(inspect)
app.command()(order)


def main() -> int | None:
    """Runs the command line; usage errors and --help exit by themselves."""
    app(prog_name="mirada data")
    return 0


if __name__ == "__main__":
    run_main(main)
