"""Indexes shards that are there already: class names of an earlier index are kept, an unreadable one is set aside."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.class_numbers import numbered_classes
from data_pipeline.errors import DataError
from data_pipeline.index import INFO_NAME, Origin, ShardIndex, open_index, write_index
from data_pipeline.progress import ProgressBar
from data_pipeline.scan import ScannedShard
from data_pipeline.shard import Shard, describe_shard
from data_pipeline.shard_names import ShardNames, find_names
from data_pipeline.storage.source import is_compressed

log = logging.getLogger(__name__)

SET_ASIDE = "_info.before.json"
_REMOTE_WORKERS = 32  # requests under way at once: each waits for the network, none for a core

Rows = NDArray[np.void]


def index_shards(
    location: str,
    out: Path | None = None,
    *,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    workers: int | None = None,
) -> ShardIndex:
    """Indexes tars where they lie (a folder, or a pattern of names; see shard_names) without changing them.

    The index goes beside them, or to `out`, which remote ones need: of those only the headers are fetched. Class names
    and split default to those of the index beside the shards, else of the one in `out`, else to the class numbers and
    "train".
    """
    found = find_names(location)
    folder = None if found.is_remote else Path(found.base)
    target = out or folder
    if target is None:
        raise DataError(
            f"{location!r}: nothing is written to remote folders; give --out FOLDER for the index"
        )
    beside = folder is not None and target.resolve() == folder.resolve()
    before = _known(folder, ours=beside) if folder is not None else None
    if before is None and not beside:
        before = _known(target, ours=True)
    if classes is None and before is not None:
        classes = before.classes
    if found.is_remote and any(is_compressed(name) for name in found.names):
        log.warning("%s: compressed shards have no headers apart, and are fetched whole", location)
    described = _describe(found, workers or (_REMOTE_WORKERS if found.is_remote else os.cpu_count() or 1))
    rows = {shard.name: scanned.rows for shard, scanned in described}
    keys = {shard.name: scanned.keys for shard, scanned in described}
    return write_index(
        target,
        name=found.base.rpartition("/")[2] if folder is None else folder.resolve().name,
        split=split or (before.split if before is not None else "train"),
        classes=_fitting_classes(classes, rows, keys),
        shards=[shard for shard, _ in described],
        rows=rows,
        origin=Origin(
            ignored=sum((Counter(scanned.ignored) for _, scanned in described), Counter[str]()),
            base=None if beside else str(folder.resolve()) if folder is not None else found.base,
        ),
    )


def _describe(found: ShardNames, workers: int) -> list[tuple[Shard, ScannedShard]]:
    described = []
    with (
        ThreadPoolExecutor(workers) as pool,
        ProgressBar("indexing", len(found.names), unit="shards") as bar,
    ):
        try:
            for result in pool.map(describe_shard, found.urls):
                described.append(result)
                bar.update(len(described))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the first error ends it, not the last shard
            raise
    return described


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


def _fitting_classes(
    classes: Sequence[str] | None, rows: Mapping[str, Rows], keys: Mapping[str, Sequence[str]]
) -> Sequence[str]:
    highest = {name: int(shard_rows["label"].max()) for name, shard_rows in rows.items()}
    unlabelled = [name for name, label in highest.items() if label < 0]
    if unlabelled and len(unlabelled) < len(rows):
        raise DataError(f"shard {unlabelled[0]!r} has no labels, while others have; label all shards or none")
    worst = max(highest, key=highest.__getitem__)
    label, where = highest[worst], f"shard {worst!r}: key {keys[worst][int(rows[worst]['label'].argmax())]!r}"
    if classes is None:
        return numbered_classes(label, where=where)
    if len(classes) <= label:
        raise DataError(
            f"{where} has label {label}, but the class map has only {len(classes)} classes; "
            "give all names (--class-names), or build the shard again"
        )
    return classes
