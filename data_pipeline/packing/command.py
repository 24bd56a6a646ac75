"""``mirada data build``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from configs.base import ConfigError
from data_pipeline.wording import count, sizes

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


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
    from data_pipeline.packing.build_plan import Layout
    from data_pipeline.packing.corpus import Choice, read_names
    from data_pipeline.packing.pack import build as build_shards

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
    described = sizes(built.num_samples, built.num_classes, built.num_shards)
    typer.echo(f"{target}: {described} ({built.kind})")
    if built.num_ignored:
        typer.echo(f"left out: {count(built.num_ignored, 'file')}, no JPEG, PNG or WebP by name")
    if built.strangers:
        first = ", ".join(map(repr, built.strangers[:3]))
        found = count(len(built.strangers), "file")
        typer.echo(f"packed as they are, though no images by content: {found}, such as {first}")


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
