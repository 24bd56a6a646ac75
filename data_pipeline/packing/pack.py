"""Packs a source of images into indexed shards: decided first, written in parallel, resumed after any kill.

    source -> Corpus (records) -> BuildPlan (shards, digest) -> TARGET/NAME-000000.tar ... -> index

A shard appears by rename, whole or not at all, and its bytes depend only on its records. So a killed build
goes on by writing the shards that are missing, and ends with the bytes of one that was not killed. Tasks of a SLURM
array write a share of the shards each; whichever sees all of them there writes the index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.index import INFO_NAME, Origin, write_index
from data_pipeline.packing.build_plan import BuildPlan, Layout, plan_build
from data_pipeline.packing.claim import claimed
from data_pipeline.packing.corpus import Choice, read_corpus
from data_pipeline.packing.record import Corpus, Remote, Skipped
from data_pipeline.packing.shard_pool import run_over_shards
from data_pipeline.packing.shard_writer import (
    ShardJob,
    Treatment,
    remove_partials,
    write_if_missing,
)
from data_pipeline.packing.share import ALONE, Share, num_cores
from data_pipeline.packing.splits import read_splits
from data_pipeline.packing.target_folder import SKIPPED_FILE, prepare, refuse_nesting, tidy
from data_pipeline.packing.written_shard import WrittenShard, load_written
from data_pipeline.whole_file import sync_folder, write_whole

_BYTES_PER_S = 400e6
_S_PER_SAMPLE = 30e-6
_S_PER_SLOW_SAMPLE = 3e-3
"""About what one process does; slow are images that are fetched or encoded anew."""
_S_WORTH_A_PROCESS = 2.0
"""Work below which another process costs more (its imports: nearly a second) than it brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build ended with."""

    kind: str
    num_samples: int
    """Of the plan, less those that were skipped."""
    num_classes: int
    num_shards: int
    num_shards_written: int
    """By this call: fewer than `num_shards` when an interrupted build or another task had written some."""
    num_shards_missing: int
    """More than 0 when they are other tasks' work: the last of them writes the index."""
    num_ignored: int
    left_out: Mapping[str, int]
    """Members of existing tars that were not carried along, by suffix."""
    strangers: tuple[str, ...]
    """Records that are no image of a known kind by content, of a build that this call completed."""
    skipped: tuple[Skipped, ...]
    """Images that were left out because they are missing or broken, likewise; listed in SKIPPED_FILE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Who does the work: processes here, and tasks of an array elsewhere."""

    num_workers: int | None = None
    """None is as many as are worth starting."""
    share: Share = ALONE
    fresh: bool = False
    """Give up an earlier build in the target."""


def build(
    source: Path,
    target: Path,
    *,
    choice: Choice | None = None,
    layout: Layout | None = None,
    treatment: Treatment | None = None,
    effort: Effort | None = None,
) -> Built:
    """Packs `source` into shards and their index in `target`."""
    refuse_nesting(source, target)
    corpus = read_corpus(source, choice or Choice())
    return _build_corpus(
        corpus, source.name, target, layout or Layout(), treatment or Treatment(), effort or Effort()
    )


def build_splits(
    source: Path,
    target: Path,
    names: tuple[str, ...] | None,
    *,
    choice: Choice | None = None,
    layout: Layout | None = None,
    treatment: Treatment | None = None,
    effort: Effort | None = None,
) -> dict[str, Built]:
    """Packs each of several splits (None: all that `source` has) into a folder of `target`, with one class map."""
    refuse_nesting(source, target)
    corpora = read_splits(source, names, choice or Choice())
    return {
        name: _build_corpus(
            corpus,
            f"{source.name} {name}",
            target / name,
            replace(layout or Layout(), name=name),
            treatment or Treatment(),
            effort or Effort(),
        )
        for name, corpus in corpora.items()
    }


def _build_corpus(
    corpus: Corpus, origin: str, target: Path, layout: Layout, treatment: Treatment, effort: Effort
) -> Built:
    if effort.fresh and not effort.share.is_alone:
        raise DataError(
            f"--fresh would delete what other tasks write: delete {target} before the array starts"
        )
    plan = plan_build(corpus, layout, target, treatment)
    with claimed(target, effort.share):
        prepare(plan, target, alone=effort.share.is_alone, fresh=effort.fresh)
        complete = (target / INFO_NAME).exists()
        jobs = [] if complete else [plan.jobs[place] for place in effort.share.places(len(plan.jobs))]
        missing = [job for job in jobs if load_written(job.path) is None]
        if missing:
            _pack(missing, target, effort)
        written = _complete(plan, corpus, layout, target, origin)
    skipped = _all_skipped(corpus, written, target)
    return Built(
        kind=corpus.kind,
        num_samples=plan.num_samples - len(skipped) + len(corpus.skipped),
        num_classes=len(corpus.classes),
        num_shards=len(plan.jobs),
        num_shards_written=len(missing),
        num_shards_missing=sum(shard is None for shard in written),
        num_ignored=corpus.num_ignored,
        left_out=corpus.left_out,
        strangers=tuple(name for shard in written if shard for name in shard.strangers),
        skipped=skipped,
    )


def _all_skipped(corpus: Corpus, written: list[WrittenShard | None], target: Path) -> tuple[Skipped, ...]:
    """Of the whole build; where its index is there and the notes of shards are gone, as SKIPPED_FILE lists them."""
    if written:
        return corpus.skipped + tuple(skip for shard in written if shard for skip in shard.skipped)
    listed = target / SKIPPED_FILE
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    return tuple(Skipped(**json.loads(line)) for line in lines)


def _pack(jobs: list[ShardJob], target: Path, effort: Effort) -> None:
    if not effort.share.sparse:
        remove_partials(target, jobs)
    run_over_shards(
        write_if_missing,
        jobs,
        num_workers=effort.num_workers or _worthwhile_workers(jobs),
        title=f"packing {target.name}",
        num_samples=sum(len(job.records) for job in jobs),
    )


def _complete(
    plan: BuildPlan, corpus: Corpus, layout: Layout, target: Path, origin: str
) -> list[WrittenShard | None]:
    """Writes the index if every shard is there; returns what became of each, None for those that are not.

    Several tasks may get here at the same moment: they write the same bytes, and whoever comes too late to find the
    notes finds the index. An empty list says so.
    """
    written = [load_written(job.path) for job in plan.jobs]
    if (target / INFO_NAME).exists():
        tidy(plan, target)
        return []
    if None in written:
        return written
    shards = [shard for shard in written if shard is not None]
    filled = [shard.shard for shard in shards if shard.num_samples]
    skipped = corpus.skipped + tuple(skip for shard in shards for skip in shard.skipped)
    if not filled:
        raise DataError(
            f"{origin}: every one of {len(skipped)} images is missing or broken; the first: {skipped[0].name!r}: "
            f"{skipped[0].reason}"
        )
    if skipped:
        lines = [json.dumps({"name": skip.name, "reason": skip.reason}) + "\n" for skip in skipped]
        write_whole(target / SKIPPED_FILE, "".join(lines))
    # The index is what says that a build is complete: nothing it names may reach the disk after it.
    sync_folder(target)
    write_index(
        target,
        name=layout.name,
        split=layout.name,
        classes=corpus.classes,
        shards=filled,
        rows={},
        origin=Origin(source=f"{corpus.kind} {origin}"),
    )
    tidy(plan, target)
    return written


def _worthwhile_workers(jobs: list[ShardJob]) -> int:
    num_bytes = sum(record.image.size for job in jobs for record in job.records)
    num_samples = sum(len(job.records) for job in jobs)
    slow = any(job.treatment.is_slow or isinstance(job.records[0].image, Remote) for job in jobs)
    seconds = num_bytes / _BYTES_PER_S + num_samples * (_S_PER_SLOW_SAMPLE if slow else _S_PER_SAMPLE)
    return min(num_cores(), 1 + int(seconds / _S_WORTH_A_PROCESS))
