"""``mirada data build``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from configs.base import ConfigError
from data_pipeline.packing import options
from data_pipeline.wording import count, sizes

if TYPE_CHECKING:
    from data_pipeline.packing.build_plan import Layout
    from data_pipeline.packing.corpus import Choice
    from data_pipeline.packing.pack import Built, Effort
    from data_pipeline.packing.recode import Recoding
    from data_pipeline.packing.shard_writer import Treatment
    from data_pipeline.packing.share import Share

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_FORMATS = ("jpg", "png", "webp")


def build(
    source: options.Source,
    target: options.Target,
    splits: options.Splits = None,
    name: options.Name = None,
    shard_size: options.ShardSize = 10_000,
    shard_bytes: options.ShardBytes = "300MB",
    gzip: options.Gzip = False,
    max_side: options.MaxSide = None,
    image_format: options.Format = None,
    quality: options.Quality = None,
    restart_markers: options.RestartMarkers = False,
    classes: options.Classes = None,
    class_names: options.ClassNames = None,
    columns: options.Columns = None,
    per_class: options.PerClass = None,
    limit: options.Limit = None,
    unlabelled: options.Unlabelled = False,
    shuffle: options.Shuffle = None,
    seed: options.Seed = 0,
    skip_missing: options.SkipMissing = False,
    skip_broken: options.SkipBroken = False,
    workers: options.Workers = None,
    task: options.Task = None,
    fresh: options.Fresh = False,
) -> None:
    """Pack images into shards, as options.DESCRIPTION tells users."""
    from data_pipeline.packing.corpus import Choice, read_names
    from data_pipeline.packing.pack import Effort
    from data_pipeline.packing.shard_writer import Treatment
    from data_pipeline.packing.share import read_share

    several = splits not in (None, options.TOGETHER)
    choice = Choice(
        unlabelled=unlabelled,
        class_names=read_names(classes, option="--classes") if classes else None,
        label_names=read_names(class_names, option="--class-names") if class_names else None,
        per_class=per_class,
        limit=limit,
        shuffle=shuffle,
        seed=seed,
        columns=_column_names(columns),
        together=splits == options.TOGETHER,
        skip_missing=skip_missing,
    )
    layout = _layout(_split_name(name, several=several), shard_size, shard_bytes, gzip=gzip)
    _build(
        source,
        target,
        splits if several else None,
        choice=choice,
        layout=layout,
        treatment=Treatment(
            recoding=_recoding(max_side, image_format, quality, skip_broken=skip_broken),
            restart_markers=restart_markers,
            skip_missing=skip_missing,
            skip_broken=skip_broken,
        ),
        effort=Effort(num_workers=workers, share=read_share(task), fresh=fresh),
    )


def _build(
    source: Path,
    target: Path,
    splits: str | None,
    *,
    choice: Choice,
    layout: Layout,
    treatment: Treatment,
    effort: Effort,
) -> None:
    from data_pipeline.packing.pack import build, build_splits
    from data_pipeline.packing.splits import parse_splits

    if splits is None:
        built = build(source, target, choice=choice, layout=layout, treatment=treatment, effort=effort)
        _report(target, built, effort.share)
        return
    parts = build_splits(
        source,
        target,
        parse_splits(splits),
        choice=choice,
        layout=layout,
        treatment=treatment,
        effort=effort,
    )
    for split, part in parts.items():
        _report(target / split, part, effort.share)


def _report(target: Path, built: Built, task: Share) -> None:
    if built.num_shards_missing:
        ready = built.num_shards - built.num_shards_missing
        typer.echo(
            f"{target}: {task} wrote {count(built.num_shards_written, 'shard')}; {ready} of {built.num_shards} are "
            "there, and the task that writes the last one writes the index"
        )
        return
    if built.num_shards_written == 0:
        typer.echo(f"{target}: complete already")
    described = sizes(built.num_samples, built.num_classes, built.num_shards)
    typer.echo(f"{target}: {described} ({built.kind})")
    if built.num_ignored:
        typer.echo(f"left out: {count(built.num_ignored, 'file')}, no JPEG, PNG or WebP by name")
    if built.left_out:
        fields = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(built.left_out.items()))
        typer.echo(f"left out: members of the tars that no shard carries: {fields}")
    if built.skipped:
        first = built.skipped[0]
        typer.echo(
            f"left out: {count(len(built.skipped), 'image')}, missing or broken, listed in {target}/_skipped.jsonl; "
            f"the first: {first.name!r}: {first.reason}"
        )
    if built.strangers:
        first_names = ", ".join(map(repr, built.strangers[:3]))
        found = count(len(built.strangers), "file")
        typer.echo(f"packed as they are, though no images by content: {found}, such as {first_names}")


def _split_name(name: str | None, *, several: bool) -> str:
    if name is not None and several:
        raise ConfigError(
            "--name names one split, and --splits takes the names from the source: leave out one"
        )
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(
            f"--name {name!r}: letters, digits, '-' and '_' only (it becomes part of file names)"
        )
    return name or options.DEFAULT_NAME


def _column_names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _layout(name: str, shard_size: int, shard_bytes: str, *, gzip: bool) -> Layout:
    from data_pipeline.packing.build_plan import Layout

    return Layout(name=name, shard_size=shard_size, shard_bytes=_num_bytes(shard_bytes), gzip=gzip)


def _recoding(
    max_side: int | None, image_format: str | None, quality: int | None, *, skip_broken: bool
) -> Recoding | None:
    if image_format is not None and image_format not in _FORMATS:
        raise ConfigError(f"--format {image_format!r}: one of {', '.join(_FORMATS)} is needed")
    if max_side is None and image_format is None:
        if quality is not None or skip_broken:
            option = "--quality" if quality is not None else "--skip-broken"
            raise ConfigError(
                f"{option} is for images that are decoded, and without --max-side or --format all keep their bytes: "
                "add one of them"
            )
        return None
    from data_pipeline.packing.recode import Recoding

    return Recoding(max_side=max_side, format=image_format, quality=quality or options.DEFAULT_QUALITY)


def _num_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"--shard-bytes {text!r}: a number of bytes such as 300MB or 1GB is needed")
    return int(match[1]) * _UNITS[match[2].upper()]
