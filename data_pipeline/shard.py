"""Shard: one tar as the index describes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.scan import scan_shard
from data_pipeline.storage.source import local_shard

_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tar."""

    name: str
    url: str
    num_samples: int
    num_bytes: int
    """Size of the file as it lies (compressed, if it is)."""
    digest: str
    """xxh3-128 of the file as it lies."""


def find_shards(folder: Path) -> list[Path]:
    """The tars of a folder in name order; DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder; give the folder that holds the shards")
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIXES))
    if not paths:
        raise DataError(f"no shards in {str(folder)!r}: expected files ending in {', '.join(_SUFFIXES)}")
    return paths


def describe_shard(path: Path) -> tuple[Shard, NDArray[np.void]]:
    """A tar's entry in the index, and its rows."""
    scanned = scan_shard(local_shard(str(path)), name=path.name)
    shard = Shard(
        name=path.name,
        url=str(path),
        num_samples=len(scanned.rows),
        num_bytes=path.stat().st_size,
        digest=checksum(path),
    )
    return shard, scanned.rows


def checksum(path: Path) -> str:
    """xxh3-128 of a file, as written in the index."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()
