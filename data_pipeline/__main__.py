"""``mirada data``: build, index, verify and inspect shards."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from configs.base import ConfigError
from configs.exit_code import run_main

if TYPE_CHECKING:
    from data_pipeline.inspect import Summary

app = typer.Typer(
    help="Turn images into indexed tar shards, and look after them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_MAX_FAULTS_SHOWN = 50
_MAX_SHARDS_SHOWN = 100
"""Of more, only those with faults are listed."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@app.command()
def build(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Images, as listed above.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="New folder for shards and index.")],
    name: Annotated[str, typer.Option(help="Name of the split; shards are NAME-000000.tar.")] = "train",
    shard_size: Annotated[int, typer.Option(min=1, help="Most samples in a shard.")] = 10_000,
    shard_bytes: Annotated[str, typer.Option(help="Most bytes in a shard, such as 300MB.")] = "300MB",
    gzip: Annotated[
        bool, typer.Option("--gzip", help="Write .tar.gz (unpacked into a cache when read).")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File with one class per line: pack these, numbered in this order.")
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="File with one name per line for a source's labels 0, 1, 2 ...")
    ] = None,
    per_class: Annotated[int | None, typer.Option(min=1, help="Pack the first N of each class.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Pack the first N of all.")] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Neither need nor write labels.")] = False,
    shuffle: Annotated[
        bool | None,
        typer.Option("--shuffle/--no-shuffle", help="Mix before packing; default: image folders only."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of that mixing.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Give up an earlier build in DST.")] = False,
) -> None:
    """Pack images into shards; a killed build goes on when run again.

    SRC is a folder of images (a folder per class), a .csv or .parquet manifest (columns path, label and optionally
    caption; paths count from the manifest), an ...-images-idx3-ubyte[.gz] file with its labels beside it, or tars.
    Images keep their bytes; idx pixels become PNGs.
    """
    from data_pipeline.build_plan import Layout
    from data_pipeline.corpus import Choice, read_names
    from data_pipeline.pack import build as build_shards

    choice = Choice(
        unlabelled=unlabelled,
        class_names=read_names(classes, option="--classes") if classes else None,
        label_names=read_names(class_names, option="--class-names") if class_names else None,
        per_class=per_class,
        limit=limit,
        shuffle=shuffle,
        seed=seed,
    )
    layout = Layout(
        name=_split_name(name), shard_size=shard_size, shard_bytes=_num_bytes(shard_bytes), gzip=gzip
    )
    built = build_shards(source, target, choice=choice, layout=layout, num_workers=workers, fresh=fresh)
    if built.num_shards_written == 0:
        typer.echo(f"{target}: complete already")
    sizes = _sizes(built.num_samples, built.num_classes, built.num_shards)
    typer.echo(f"{target}: {sizes} ({built.kind})")
    if built.num_ignored:
        typer.echo(f"left out: {_count(built.num_ignored, 'file')}, no JPEG, PNG or WebP by name")
    if built.strangers:
        first = ", ".join(map(repr, built.strangers[:3]))
        found = _count(len(built.strangers), "file")
        typer.echo(f"packed as they are, though no images by content: {found}, such as {first}")


@app.command()
def index(
    location: Annotated[str, typer.Argument(metavar="LOCATION", help="Folder of shards.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the index, where the shards' own must not be written.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Name of the split; default: as indexed before, else train.")
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="File with one name per line for the labels 0, 1, 2 ...")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Index shards that somebody else made, without changing or moving them."""
    from data_pipeline.corpus import read_names
    from data_pipeline.reindex import reindex

    names = read_names(class_names, option="--class-names") if class_names else None
    made = reindex(location, out, class_names=names, split=split, num_workers=workers or os.cpu_count() or 1)
    typer.echo(f"{made.folder}: {_sizes(made.num_samples, len(made.classes), len(made.shards))}")


@app.command()
def verify(
    location: Annotated[str, typer.Argument(metavar="DIR", help="Folder of indexed shards.")],
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image too.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
) -> None:
    """Check shards against their index; exit 1 when something is wrong."""
    from data_pipeline.verify import verify as verify_shards

    report = verify_shards(location, deep=deep, num_workers=workers)
    shown = report.shards if len(report.shards) <= _MAX_SHARDS_SHOWN else report.faulty_shards
    _print_table(
        ("shard", "samples", "bytes", "faults"),
        [(shard.name, shard.num_samples, shard.num_bytes, len(shard.faults)) for shard in shown],
    )
    for fault in report.faults[:_MAX_FAULTS_SHOWN]:
        typer.echo(str(fault))
    if len(report.faults) > _MAX_FAULTS_SHOWN:
        typer.echo(f"... and {len(report.faults) - _MAX_FAULTS_SHOWN:,} more")
    how = "every byte read, every image decoded" if deep else "every byte read; --deep decodes the images too"
    found = _count(len(report.faults), "fault") if report.faults else "no faults"
    sizes = f"{_count(report.num_samples, 'sample')}, {_count(len(report.shards), 'shard')}"
    typer.echo(f"{report.folder}: {sizes}: {found} ({how})")
    if report.faults:
        raise typer.Exit(1)


@app.command()
def inspect(
    location: Annotated[str, typer.Argument(metavar="DIR", help="Folder of indexed shards.")],
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Write a contact sheet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show counts, class balance, sizes, formats and resolutions."""
    from data_pipeline.index import open_index
    from data_pipeline.inspect import summarize, write_contact_sheet

    opened = open_index(location)
    summary = summarize(opened)
    if sheet is not None:
        write_contact_sheet(opened, sheet)
    if as_json:
        typer.echo(json.dumps(summary.as_json(), indent=1))
        return
    _print_table(("", summary.name), _summary_rows(summary))
    if summary.classes:
        _print_table(
            ("label", "class", "samples"), [(n, *entry) for n, entry in enumerate(summary.classes.items())]
        )
    if sheet is not None:
        typer.echo(f"contact sheet: {sheet}")


def main() -> int | None:
    """Runs the command line; usage errors and --help exit by themselves."""
    app(prog_name="mirada data")
    return 0


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


def _count(number: int, thing: str, plural: str | None = None) -> str:
    return f"{number:,} {thing if number == 1 else plural or thing + 's'}"


def _sizes(num_samples: int, num_classes: int, num_shards: int) -> str:
    classes = _count(num_classes, "class", "classes") if num_classes else "no labels"
    return f"{_count(num_samples, 'sample')}, {classes}, {_count(num_shards, 'shard')}"


def _print_table(columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    # Without a terminal there is no width to fit into, and nothing may be cut.
    Console(width=None if sys.stdout.isatty() else 200).print(table, markup=False)


def _split_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(
            f"--name {name!r}: letters, digits, '-' and '_' only (it becomes part of file names)"
        )
    return name


def _num_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"--shard-bytes {text!r}: a number of bytes such as 300MB or 1GB is needed")
    return int(match[1]) * _UNITS[match[2].upper()]


if __name__ == "__main__":
    run_main(main)
