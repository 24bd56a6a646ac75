"""``mirada data order``: how a job will read a corpus, before it does."""

from __future__ import annotations

from typing import Annotated

import typer


def order(
    location: Annotated[str, typer.Argument(metavar="LOCATION", help="Folder of indexed shards.")],
    global_batch: Annotated[int, typer.Option(min=1, help="Images per step over all ranks.")] = 256,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that share each batch.")] = 1,
    streams: Annotated[int | None, typer.Option(min=1, help="As data.streams; default: chosen.")] = None,
    window: Annotated[int, typer.Option(min=1, help="As data.shuffle_window.")] = 8,
) -> None:
    """Show streams, batches, and which share of the shards each node reads."""
    from configs.data import DataConfig
    from data_pipeline.index import open_index
    from data_pipeline.order.reading import measure_reading
    from data_pipeline.order.run_order import RunOrder

    index = open_index(location)
    data = DataConfig(train=location, streams=streams, shuffle_window=window)
    planned = RunOrder(index, data, global_batch=global_batch, seed=0)
    found = measure_reading(index, planned, global_batch=global_batch, num_nodes=nodes)
    left_out = planned.num_samples - planned.batches_per_epoch * global_batch
    for name, value in (
        (
            "batches per epoch",
            f"{planned.batches_per_epoch:,} of {global_batch:,}; {left_out:,} samples left out",
        ),
        ("streams", f"{planned.num_streams:,}, each shuffled within {window} shards"),
        ("shards per node", f"at most {found.most_shards:,} of {found.num_shards:,}"),
        ("read amplification", f"{found.amplification:.2f} (1 is each shard on one node only)"),
    ):
        typer.echo(f"{name:<20}{value}")
    if planned.num_streams % nodes:
        typer.echo(
            f"{nodes} nodes do not divide {planned.num_streams} streams: set data.streams to a multiple"
        )
