"""Leaves samples out of an index: a new index folder over the same shards, which stay as they are.

`excluded.json` in it says which samples, where in their shards, and why; `mirada data verify` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.index import INFO_NAME, Origin, ShardIndex, write_index
from data_pipeline.inspection.duplicates import Duplicates
from data_pipeline.shard import Shard
from data_pipeline.whole_file import write_whole

EXCLUDED_NAME = "excluded.json"


def check_target(index: ShardIndex, out: Path) -> None:
    """DataError unless a new index may be written to `out`: said before the work that comes first."""
    if out.resolve() == index.folder.resolve() or (out / INFO_NAME).exists():
        raise DataError(
            f"{str(out)!r} has an index already; name a new folder for the index without these images"
        )


def exclude_duplicates(
    index: ShardIndex, duplicates: Duplicates, out: Path, *, against: ShardIndex
) -> ShardIndex:
    """Leaves out the images of `index` that stand in the other index too."""
    why = [
        {
            "key": pair.sample.key,
            "because": f"{pair.other.shard}: key {pair.other.key!r} of {against.folder.resolve()}",
            "distance": pair.distance,
            "difference": pair.difference,
        }
        for pair in duplicates.found
    ]
    return exclude(index, duplicates.sample_ids, out, why=why)


def exclude(
    index: ShardIndex, sample_ids: NDArray[np.int64], out: Path, *, why: Sequence[Mapping[str, Any]]
) -> ShardIndex:
    """Writes an index without these samples to the folder `out`; `why` has one entry per sample, for people."""
    check_target(index, out)
    if len(sample_ids) == index.num_samples:
        raise DataError(f"all {index.num_samples} images would be left out, and an index needs some")
    keep = np.ones(index.num_samples, bool)
    keep[sample_ids] = False
    rows = {
        shard.name: index.rows(number)[keep[index.starts[number] : index.starts[number + 1]]]
        for number, shard in enumerate(index.shards)
    }
    base = _base(index)
    out.mkdir(parents=True, exist_ok=True)
    excluded = _write(out, index, sample_ids, why)
    return write_index(
        out,
        name=index.name,
        split=index.split,
        classes=index.classes,
        shards=[
            _with_samples(shard, len(rows[shard.name])) for shard in index.shards if len(rows[shard.name])
        ],
        rows={name: kept for name, kept in rows.items() if len(kept)},
        origin=Origin(
            base=base,
            ignored=index.ignored,
            excluded=excluded,
            source=f"{index.folder.resolve()} without {len(sample_ids)} images: {EXCLUDED_NAME}",
        ),
    )


def read_excluded(folder: Path) -> dict[str, set[int]]:
    """Offsets of the images that the index of a folder leaves out on purpose, by shard."""
    path = folder / EXCLUDED_NAME
    if not path.is_file():
        return {}
    try:
        excluded: dict[str, set[int]] = {}
        for sample in json.loads(path.read_bytes())["samples"]:
            excluded.setdefault(str(sample["shard"]), set()).add(int(sample["offset"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read ({error!r}); restore it, or make this index again with: "
            "mirada data duplicates ... --exclude"
        ) from error
    return excluded


def _with_samples(shard: Shard, count: int) -> Shard:
    """The shard with so many of its samples; whether those that are left have captions may not be known."""
    captions = shard.num_captions
    if count < shard.num_samples and captions is not None:
        captions = {0: 0, shard.num_samples: count}.get(captions)
    return replace(shard, num_samples=count, num_captions=captions)


def _write(
    out: Path, index: ShardIndex, sample_ids: NDArray[np.int64], why: Sequence[Mapping[str, Any]]
) -> str:
    """Lists what is left out; returns a digest of which samples that is."""
    shards, rows = index.locate(sample_ids)
    samples = [
        {"shard": index.shards[shard].name, "offset": int(index.rows(shard)["offset"][row]), **reason}
        for shard, row, reason in zip(shards.tolist(), rows.tolist(), why, strict=True)
    ]
    # What the index before left out is out of this one too.
    before = [
        {"shard": shard, "offset": offset}
        for shard, offsets in read_excluded(index.folder).items()
        for offset in sorted(offsets)
    ]
    left_out = before + samples
    content = {"index": str(index.folder.resolve()), "digest": index.digest, "samples": left_out}
    write_whole(out / EXCLUDED_NAME, json.dumps(content, indent=1) + "\n")
    places = sorted((sample["shard"], sample["offset"]) for sample in left_out)
    return xxhash.xxh3_128_hexdigest(json.dumps(places).encode())


def _base(index: ShardIndex) -> str:
    """The one folder or URL in which all shards lie."""
    bases = {shard.url.rpartition("/")[0] for shard in index.shards}
    if len(bases) != 1:
        raise DataError(
            f"the shards of {str(index.folder)!r} lie in {len(bases)} folders, not in one; index each on its own"
        )
    base = bases.pop()
    return base if "://" in base else str(Path(base).resolve())
