"""``mirada data verify`` and ``duplicates``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.wording import count, print_table

if TYPE_CHECKING:
    from data_pipeline.inspection.duplicates import Duplicates

_MAX_FAULTS_SHOWN = 50
_MAX_PAIRS_SHOWN = 30
_MAX_SHARDS_SHOWN = 100
"""Of more, only those with faults are listed."""
_RADIUS = 8
_DIFFERENCE = 0.02
"""334 photographs saved again (JPEG 30 to 75), resized, or cut by 1 % at each side were found in 84 to 98 of 100 cases,
and of 55,611 pairs of different ones none was; cut by 2.5 % at each side, 31 of 100."""


def verify(
    location: Annotated[str, typer.Argument(metavar="DIR", help="Folder of indexed shards.")],
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image too.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Check shards against their index; exit 1 when something is wrong."""
    from data_pipeline.inspection.verify import verify as verify_shards

    report = verify_shards(location, deep=deep, num_workers=workers)
    shown = report.shards if len(report.shards) <= _MAX_SHARDS_SHOWN else report.faulty_shards
    print_table(
        ("shard", "samples", "bytes", "faults"),
        [(shard.name, shard.num_samples, shard.num_bytes, len(shard.faults)) for shard in shown],
    )
    for fault in report.faults[:_MAX_FAULTS_SHOWN]:
        typer.echo(str(fault))
    if len(report.faults) > _MAX_FAULTS_SHOWN:
        typer.echo(f"... and {len(report.faults) - _MAX_FAULTS_SHOWN:,} more")
    how = "every byte read, every image decoded" if deep else "every byte read; --deep decodes the images too"
    found = count(len(report.faults), "fault") if report.faults else "no faults"
    sizes = f"{count(report.num_samples, 'sample')}, {count(len(report.shards), 'shard')}"
    typer.echo(f"{report.folder}: {sizes}: {found} ({how})")
    if report.faults:
        raise typer.Exit(1)


def duplicates(
    location: Annotated[str, typer.Argument(metavar="TRAIN", help="Folder of indexed training shards.")],
    against: Annotated[
        str,
        typer.Option(metavar="OTHER", help="Folder of indexed shards to compare with: an evaluation set."),
    ],
    radius: Annotated[
        int, typer.Option(min=0, max=16, help="Bits, of 64, in which the hashes of a pair may differ.")
    ] = _RADIUS,
    difference: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="How far the thumbnails of a pair may differ: 1 - correlation."),
    ] = _DIFFERENCE,
    exclude: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write an index of TRAIN's shards without these images there."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the pairs (400 at most).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """List images of TRAIN that stand in OTHER too, also saved again, resized or cut by a percent; exit 1 if some do.

    The defaults are for photographs. Small grey pictures of centred things resemble one another: look at the --sheet,
    and lower --difference (0.005 suits Fashion-MNIST).

    With --exclude FOLDER the exit code is 0: train on FOLDER, an index without these images. The tars stay as they
    are, sample ids are new, and excluded.json in it says what was left out.
    """
    from data_pipeline.index import open_index
    from data_pipeline.inspection.duplicates import find_duplicates
    from data_pipeline.inspection.exclude import check_target, exclude_duplicates
    from data_pipeline.inspection.pairs_sheet import write_pairs_sheet
    from data_pipeline.inspection.sheet import check_name

    index, other = open_index(location), open_index(against)
    if sheet is not None:
        check_name(sheet)
    if exclude is not None:
        check_target(index, exclude)
    result = find_duplicates(
        index, other, radius=radius, difference=difference, num_workers=workers or os.cpu_count() or 1
    )
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=1))
    else:
        _print_pairs(result, f"{index.folder} and {other.folder}")
    if sheet is not None and result.found:
        write_pairs_sheet(index, other, result, sheet)
    if exclude is not None:
        made = exclude_duplicates(index, result, exclude, against=other)
        typer.echo(f"{made.folder}: an index of {count(made.num_samples, 'sample')}", err=as_json)
    elif result.found:
        raise typer.Exit(1)


def _print_pairs(result: Duplicates, where: str) -> None:
    shown = result.found[:_MAX_PAIRS_SHOWN]
    if shown:
        print_table(
            ("shard", "key", "class", "is in", "as key", "class there", "bits", "difference"),
            [
                (
                    pair.sample.shard,
                    pair.sample.key,
                    pair.sample.class_name or "",
                    pair.other.shard,
                    pair.other.key,
                    pair.other.class_name or "",
                    pair.distance,
                    f"{pair.difference:.4f}",
                )
                for pair in shown
            ],
        )
    if len(shown) < len(result.found):
        typer.echo(f"... and {len(result.found) - len(shown):,} more; --json lists all")
    blank = result.num_without_hash + result.num_others_without_hash
    typer.echo(
        f"{where}: {count(len(result.found), 'image')} in both; {result.num_proposed:,} had a similar hash"
        + (f"; {blank:,} could not be compared (not decodable, or of one colour)" if blank else "")
    )
