"""``mirada data verify`` and ``inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipeline.wording import count, print_table

if TYPE_CHECKING:
    from data_pipeline.inspection.inspect import Summary

_MAX_FAULTS_SHOWN = 50
_MAX_SHARDS_SHOWN = 100
"""Of more, only those with faults are listed."""


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


def inspect(
    location: Annotated[str, typer.Argument(metavar="DIR", help="Folder of indexed shards.")],
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Write a contact sheet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show counts, class balance, sizes, formats and resolutions."""
    from data_pipeline.index import open_index
    from data_pipeline.inspection.inspect import summarize, write_contact_sheet

    opened = open_index(location)
    summary = summarize(opened)
    if sheet is not None:
        write_contact_sheet(opened, sheet)
    if as_json:
        typer.echo(json.dumps(summary.as_json(), indent=1))
        return
    print_table(("", summary.name), _summary_rows(summary))
    if summary.classes:
        print_table(
            ("label", "class", "samples"), [(n, *entry) for n, entry in enumerate(summary.classes.items())]
        )
    if sheet is not None:
        typer.echo(f"contact sheet: {sheet}")


def _summary_rows(summary: Summary) -> list[tuple[object, ...]]:
    formats = ", ".join(f"{count:,} {name}" for name, count in summary.formats.items())
    common = [f"{size} ({count:,})" for size, count in list(summary.resolutions.items())[:5]]
    more = " ..." if len(summary.resolutions) > len(common) else ""
    balance = "no labels"
    if summary.classes:
        counts = list(summary.classes.values())
        balance = f"{len(counts)}, of {min(counts):,} to {max(counts):,} samples"
    return [
        ("split", summary.split),
        ("samples", f"{summary.num_samples:,}" + _remark(summary.num_unlabelled, "without label")),
        ("classes", balance),
        (
            "shards",
            f"{summary.num_shards} of {summary.samples_per_shard[0]:,} to {summary.samples_per_shard[1]:,}",
        ),
        ("bytes", f"{summary.num_bytes:,}"),
        ("formats", formats),
        ("image bytes", "{:,} to {:,}, median {:,}".format(*(summary.image_bytes[i] for i in (0, 2, 1)))),
        ("width x height", ", ".join(common) + more + _remark(summary.num_unreadable, "unreadable")),
        ("digest", summary.digest),
    ]


def _remark(count: int, what: str) -> str:
    return f" ({count:,} {what})" if count else ""
