"""Indexes shards that are there already: class names of an earlier index are kept, an unreadable one is set aside."""

from __future__ import annotations

import logging
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.index import INFO_NAME, ShardIndex, index_shards, open_index
from data_pipeline.progress import ProgressBar
from data_pipeline.shard import find_shards
from data_pipeline.storage.source import resolve

log = logging.getLogger(__name__)

SET_ASIDE = "_info.before.json"


def reindex(
    location: str,
    out: Path | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    split: str | None = None,
    num_workers: int = 1,
) -> ShardIndex:
    """Writes the index of a folder of shards beside them, or to `out`; names and split default to those known there."""
    folder = Path(resolve(location))
    num_shards = len(find_shards(folder))
    before = _known(folder, ours=out is None) or (_known(out, ours=True) if out is not None else None)
    if class_names is None and before is not None:
        class_names = before.classes
    with ProgressBar("indexing", num_shards, unit="shards") as bar:
        return index_shards(
            location,
            out,
            classes=class_names,
            split=split or (before.split if before is not None else "train"),
            workers=num_workers,
            progress=bar.report,
        )


def _known(folder: Path, *, ours: bool) -> ShardIndex | None:
    """The index in a folder; one that cannot be read is renamed where `ours` says that a new one takes its place."""
    file = folder / INFO_NAME
    if not file.is_file():
        return None
    try:
        return open_index(str(folder))
    except DataError:
        log.warning("%s cannot be read: class names, if it has any, are lost", file)
        if ours:
            file.replace(folder / SET_ASIDE)
        return None
