"""ShardIndex: what the shards of one split hold; the only reader and writer of the small files that say so.

On disk: `_info.json` (timm's form, with a "mirada" part) and one `SHARD.index.npy` of SAMPLE rows per shard.
A sample's id is its position in shard order, and never changes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.scan import SAMPLE
from data_pipeline.shard import Shard
from data_pipeline.storage.source import is_remote, refuse_commands, resolve
from data_pipeline.whole_file import write_whole

INFO_NAME = "_info.json"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What an index says of its shards beside what they hold."""

    base: str | None = None
    """Folder or address of the shards, where it is not the folder of the index."""
    source: str = ""
    """What they were made from, for people."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Members of the tars that belong to no sample: how many by suffix."""
    excluded: str = ""
    """Digest of the samples of the tars that are left out on purpose; empty where none are."""


class ShardIndex:
    """All samples of one split: in which shard, where, with which label."""

    def __init__(
        self,
        *,
        folder: Path,
        name: str,
        split: str,
        classes: tuple[str, ...],
        shards: tuple[Shard, ...],
        ignored: Mapping[str, int] | None = None,
        excluded: str = "",
    ) -> None:
        self.folder = folder
        self.name = name
        self.split = split
        self.classes = classes
        self.shards = shards
        self.ignored = dict(ignored or {})
        """Members of the tars that belong to no sample: how many by suffix."""
        self.excluded = excluded
        """Digest of the samples of the tars that are left out on purpose; empty where none are."""
        self.lengths = np.array([shard.num_samples for shard in shards], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        self.num_samples = int(self.starts[-1])

    @cached_property
    def digest(self) -> str:
        """Identifies the data wherever it lies: classes, shard names, counts, checksums, and what is left out."""
        parts = [[shard.name, shard.num_samples, shard.digest] for shard in self.shards]
        left_out = [self.excluded] if self.excluded else []
        return xxhash.xxh3_128_hexdigest(json.dumps([self.classes, parts, *left_out]).encode())

    def rows(self, shard: int) -> NDArray[np.void]:
        """SAMPLE rows of a shard, mapped from disk at first use."""
        return _load_rows(self.folder, self.shards[shard].name, self.shards[shard].num_samples)

    def labels(self) -> NDArray[np.int64]:
        """The label of every sample; -1 where there is none."""
        return np.concatenate([self.rows(shard)["label"] for shard in range(len(self.shards))]).astype(
            np.int64
        )

    def locate(self, sample_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample ids -> (shard, row within the shard)."""
        shards = np.searchsorted(self.starts, sample_ids, side="right") - 1
        return shards, sample_ids - self.starts[shards]


def open_index(location: str) -> ShardIndex:
    """The index of a folder of shards (or of a folder that holds only the index of shards elsewhere)."""
    folder = Path(resolve(location))
    path = folder / INFO_NAME
    if not path.is_file():
        raise DataError(
            f"no index in {location!r}: '{INFO_NAME}' is missing; make it with: mirada data index {location}"
        )
    try:
        return _parse_info(json.loads(path.read_bytes()), folder)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"the index {str(path)!r} cannot be read ({error!r}); "
            f"make it again with: mirada data index {location}"
        ) from error


def write_index(
    folder: Path,
    *,
    name: str,
    split: str,
    classes: Sequence[str],
    shards: Sequence[Shard],
    rows: Mapping[str, NDArray[np.void]],
    origin: Origin | None = None,
) -> ShardIndex:
    """Writes an index into `folder`, `_info.json` last; `rows` by shard name, of those that have none there."""
    origin = origin or Origin()
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        if shard.name in rows:
            write_rows(folder, shard.name, rows[shard.name])
    lengths = [shard.num_samples for shard in shards]
    described = {
        "name": split,
        "num_samples": sum(lengths),
        "filenames": [shard.name for shard in shards],
        "shard_lengths": lengths,
    }
    ours = {
        "version": _VERSION,
        "base": origin.base,
        "classes": list(classes),
        "shards": [_described(shard) for shard in shards],
        "source": origin.source,
        "ignored": dict(origin.ignored),
        **({"excluded": origin.excluded} if origin.excluded else {}),
    }
    info = {"name": name, "splits": {split: described}, "mirada": ours}
    write_whole(folder / INFO_NAME, json.dumps(info, indent=1))
    return open_index(str(folder))


def write_rows(folder: Path, shard_name: str, rows: NDArray[np.void]) -> None:
    """Writes one shard's rows beside it, whole or not at all."""
    content = io.BytesIO()
    np.save(content, rows.astype(SAMPLE, copy=False), allow_pickle=False)
    write_whole(_rows_path(folder, shard_name), content.getvalue())
    _load_rows.cache_clear()


def _parse_info(info: dict[str, Any], folder: Path) -> ShardIndex:
    ours = info.get("mirada")
    if ours is None or len(info["splits"]) != 1:
        raise ValueError("it was not written by Mirada, or describes several splits")
    if ours["version"] != _VERSION:
        raise ValueError(f"version {ours['version']} is not {_VERSION}")
    (split, described), base = next(iter(info["splits"].items())), ours["base"]
    root = _shard_root(folder, base)
    columns = zip(described["filenames"], described["shard_lengths"], ours["shards"], strict=True)
    shards = tuple(
        Shard(
            name=str(name),
            url=root + _checked_name(str(name)),
            num_samples=int(length),
            num_bytes=int(entry["bytes"]),
            digest=str(entry["digest"]),
            num_captions=None if entry.get("captions") is None else int(entry["captions"]),
        )
        for name, length, entry in columns
    )
    classes = tuple(str(label) for label in ours["classes"])
    return ShardIndex(
        folder=folder,
        name=str(info["name"]),
        split=split,
        classes=classes,
        shards=shards,
        ignored={str(suffix): int(count) for suffix, count in dict(ours.get("ignored", {})).items()},
        excluded=str(ours.get("excluded", "")),
    )


def _described(shard: Shard) -> dict[str, Any]:
    """What is ours of a shard."""
    described = {"bytes": shard.num_bytes, "digest": shard.digest, "captions": shard.num_captions}
    return {name: value for name, value in described.items() if value is not None}


def _shard_root(folder: Path, base: str | None) -> str:
    """What the name of each shard is put behind."""
    if base is None:
        return f"{folder}/"
    refuse_commands(base)
    return f"{base.rstrip('/')}/" if is_remote(base) else f"{folder / base.removeprefix('file://')}/"


def _checked_name(name: str) -> str:
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"shard name {name!r} is not a plain file name")
    return name


def _rows_path(folder: Path, shard_name: str) -> Path:
    return folder / f"{shard_name}.index.npy"


# Each mapping holds a file descriptor, and so does each open shard; the usual limit is 1,024.
@lru_cache(maxsize=256)
def _load_rows(folder: Path, shard_name: str, num_samples: int) -> NDArray[np.void]:
    path = _rows_path(folder, shard_name)
    advice = f"make the index again with: mirada data index {folder}"
    try:
        # Mapped, so that all workers and ranks of a node share one copy; a plain view: np.memmap slices slowly.
        rows = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise DataError(f"the index file {str(path)!r} cannot be read ({error}); {advice}") from error
    if rows.dtype != SAMPLE or rows.shape != (num_samples,):
        raise DataError(
            f"the index file {str(path)!r} has {rows.shape} rows of another kind or number; {advice}"
        )
    return rows
