"""What ``mirada data build`` says of itself: description, arguments, options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_NAME = "train"
DEFAULT_QUALITY = 90
TOGETHER = "none"
"""What ``--splits`` says where a manifest's rows are one split, whatever its column split says."""

DESCRIPTION = """\
Pack images into shards; a killed build goes on when run again.

SRC is a folder of images (a folder per class), a .csv or .parquet manifest, an ...-images-idx3-ubyte[.gz] file with
its labels beside it, or tars. A manifest has the columns path (or url), label, and optionally caption and split;
what its other columns say becomes KEY.json. Paths count from the manifest's folder; http, s3 and other URLs are
fetched.

Images keep their bytes unless --max-side or --format asks for others. Then all are decoded, and those that are too
large, of another format or not upright are turned as their EXIF tag says, made smaller (never larger) and encoded
anew, without metadata. idx pixels become PNGs. --restart-markers makes training decode JPEGs faster.

In a SLURM job array, or under srun with several tasks, each task writes its share of the shards and the last one
the index: sbatch --array=0-7 --wrap "mirada data build SRC DST". A task that died is run again.
"""
"""What ``--help`` says above the options."""

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Images, as listed above.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="New folder for shards and index.")]

Splits = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Pack several splits, each into DST/NAME, under one class map: folders of SRC, or values of a manifest's "
        "column split. Such as train,val; or all. none: pack all rows of such a manifest as one.",
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help=f"Name of the split; shards are NAME-000000.tar.  [default: {DEFAULT_NAME}]"),
]
ShardSize = Annotated[int, typer.Option(min=1, help="Most samples in a shard.")]
ShardBytes = Annotated[str, typer.Option(help="Most bytes of images in a shard, such as 300MB.")]
Gzip = Annotated[bool, typer.Option("--gzip", help="Write .tar.gz (unpacked into a cache when read).")]

MaxSide = Annotated[
    int | None, typer.Option(min=1, help="Make larger images smaller: longest side in pixels.")
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="jpg|png|webp", help="Encode images of other formats anew."),
]
Quality = Annotated[
    int | None,
    typer.Option(
        min=1, max=100, help=f"Of JPEG and WebP that are encoded anew.  [default: {DEFAULT_QUALITY}]"
    ),
]

RestartMarkers = Annotated[
    bool,
    typer.Option(
        "--restart-markers",
        help="Put restart markers into JPEGs, changing no pixel: training then decodes only what a crop touches. Needs "
        "libjpeg-turbo's jpegtran.",
    ),
]

Classes = Annotated[
    Path | None, typer.Option(help="File with one class per line: pack these, numbered in this order.")
]
ClassNames = Annotated[
    Path | None, typer.Option(help="File with one name per line for a source's labels 0, 1, 2 ...")
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="Further columns of a manifest to keep, such as a,b; default: all; '': none."
    ),
]
PerClass = Annotated[int | None, typer.Option(min=1, help="Pack the first N of each class.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Pack the first N of all (of each split).")]
Unlabelled = Annotated[bool, typer.Option("--unlabelled", help="Neither need nor write labels.")]
Shuffle = Annotated[
    bool | None,
    typer.Option("--shuffle/--no-shuffle", help="Mix before packing; default: image folders only."),
]
Seed = Annotated[int, typer.Option(help="Of that mixing.")]
SkipMissing = Annotated[
    bool,
    typer.Option(
        "--skip-missing",
        help="Leave out images that a manifest names and that are not there; DST/_skipped.jsonl lists them.",
    ),
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken", help="Leave out images that --max-side or --format cannot decode; listed there too."
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; default: as many as are worth starting, at most one per core."),
]
Task = Annotated[
    str | None,
    typer.Option(metavar="K/N", help="Write the K-th of N shares; default: as SLURM says, else everything."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Give up an earlier build in DST.")]
