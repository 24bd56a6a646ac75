"""Packs a source of images into indexed shards: decided first, written in parallel, resumed after any kill.

    source -> Corpus (records) -> BuildPlan (shards, digest) -> TARGET/NAME-000000.tar ... -> index

A shard appears by rename, whole or not at all, and its bytes depend only on its records. So a killed build
goes on by writing the shards that are missing, and ends with the bytes of one that was not killed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.index import INFO_NAME, write_index, write_rows
from data_pipeline.packing.build_plan import PLAN_FILE, BuildPlan, Layout, plan_build, save_plan, saved_digest
from data_pipeline.packing.corpus import Choice, read_corpus
from data_pipeline.packing.shard_pool import run_over_shards
from data_pipeline.packing.shard_writer import ShardJob, remove_partials, sync_folder, write_shard
from data_pipeline.shard import Shard, describe_shard

log = logging.getLogger(__name__)

_CLAIM_FILE = ".build.lock"
_OWN_FILE = re.compile(r"[A-Za-z0-9_-]+-\d{6,}\.tar(\.gz)?(\.index\.npy)?")
_WORTH_A_PROCESS = 32_000_000
"""Bytes of images below which another process costs more (imports: 2 s) than it brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build ended with."""

    kind: str
    num_samples: int
    num_classes: int
    num_shards: int
    num_shards_written: int
    """Less than `num_shards` when an interrupted build had written some; 0 when nothing was left to do."""
    num_ignored: int
    strangers: tuple[str, ...]
    """Records written this time that are no image of a known kind by content."""


def build(
    source: Path,
    target: Path,
    *,
    choice: Choice | None = None,
    layout: Layout | None = None,
    num_workers: int | None = None,
    fresh: bool = False,
) -> Built:
    """Packs `source` into shards and their index in `target`; `fresh` gives up an earlier build there."""
    choice, layout = choice or Choice(), layout or Layout()
    _refuse_nesting(source, target)
    corpus = read_corpus(source, choice)
    plan = plan_build(corpus, layout, target)
    with _claimed(target):
        _prepare(plan, target, fresh=fresh)
        num_missing = sum(not Path(job.path).exists() for job in plan.jobs)
        packed: list[_Packed] = []
        if num_missing or not (target / INFO_NAME).exists():
            packed = run_over_shards(
                _pack_shard,
                plan.jobs,
                num_workers=num_workers or _worthwhile_workers(plan),
                title=f"packing {target.name}",
                num_samples=plan.num_samples,
            )
            # The index is what says that a build is complete: nothing it names may reach the disk after it.
            sync_folder(target)
            shards = [result.shard for result in packed]
            origin = f"{corpus.kind} {source.name}"
            write_index(
                target,
                name=layout.name,
                split=layout.name,
                classes=corpus.classes,
                shards=shards,
                rows={},
                source=origin,
            )
    return Built(
        kind=corpus.kind,
        num_samples=plan.num_samples,
        num_classes=len(corpus.classes),
        num_shards=len(plan.jobs),
        num_shards_written=num_missing,
        num_ignored=corpus.num_ignored,
        strangers=tuple(name for result in packed for name in result.strangers),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """What became of one shard."""

    shard: Shard
    strangers: tuple[str, ...]


def _pack_shard(job: ShardJob, on_record: Callable[[], None]) -> _Packed:
    """Writes a shard unless an earlier build did, and its part of the index."""
    path = Path(job.path)
    if path.exists():
        strangers: tuple[str, ...] = ()
        for _ in job.records:
            on_record()
    else:
        strangers = write_shard(job, on_record)
    shard, rows = describe_shard(path)
    if shard.num_samples != len(job.records):
        raise DataError(
            f"{path} holds {shard.num_samples} samples, not the {len(job.records)} it was given: delete it"
        )
    write_rows(path.parent, shard.name, rows)
    return _Packed(shard=shard, strangers=strangers)


def _worthwhile_workers(plan: BuildPlan) -> int:
    num_bytes = sum(record.image.size for job in plan.jobs for record in job.records)
    return min(os.cpu_count() or 1, 1 + num_bytes // _WORTH_A_PROCESS)


def _refuse_nesting(source: Path, target: Path) -> None:
    inner, outer = target.resolve(), source.resolve()
    if source.is_dir() and inner.is_relative_to(outer):
        raise DataError(f"{target} lies in the source {source}: choose a folder outside of it for the shards")
    if target.exists() and not target.is_dir():
        raise DataError(f"{target} is a file: name a folder for the shards")


def _prepare(plan: BuildPlan, target: Path, *, fresh: bool) -> None:
    """Leaves in `target` only what this very plan wrote before; DataError when something else is there."""
    if fresh:
        _remove_build(target)
    before = saved_digest(target)
    if before is None:
        others = sorted(path.name for path in target.iterdir() if not path.name.startswith("."))
        if others:
            raise DataError(
                f"{target} is not empty (it holds {others[0]!r}): choose a new folder for the shards"
            )
    elif before != plan.digest:
        raise DataError(
            f"{target} holds a build of other input: the source or an option changed since; choose a new folder, or "
            "give up what is there and begin anew: --fresh"
        )
    remove_partials(target)
    if before is None:
        save_plan(plan, target)


def _remove_build(target: Path) -> None:
    """Deletes an earlier build's own files, its plan last; a folder without a plan is left alone."""
    if not (target / PLAN_FILE).exists():
        return
    remove_partials(target)
    (target / INFO_NAME).unlink(missing_ok=True)
    for path in target.iterdir():
        if _OWN_FILE.fullmatch(path.name):
            path.unlink()
    (target / PLAN_FILE).unlink()


@contextmanager
def _claimed(target: Path) -> Iterator[None]:
    """Creates `target` and keeps a second build out of it; a dead process has no claim."""
    existed = target.exists()
    target.mkdir(parents=True, exist_ok=True)
    claim = target / _CLAIM_FILE
    with open(claim, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            if fault.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(
                    f"another build is writing to {target}: wait for it, or choose another folder"
                ) from None
            log.warning(
                "%s: no lock to be had (%s); start no second build there meanwhile", target, fault.strerror
            )
        try:
            yield
        finally:
            claim.unlink(missing_ok=True)
            if not existed and not any(target.iterdir()):
                target.rmdir()
