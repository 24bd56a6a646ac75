"""BuildPlan: which record goes to which shard, and the file that lets a killed build go on where it was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_pipeline.errors import DataError
from data_pipeline.packing.record import Corpus, Record
from data_pipeline.packing.shard_writer import ShardJob, Treatment
from data_pipeline.whole_file import write_whole

PLAN_FILE = "_build.json"
_VERSION = 2
_MIN_KEY_WIDTH = 6
# A tar pads each member to 512 bytes and puts a header of 512 before it: for the image and for its label.
_BYTES_PER_SAMPLE = 512 + 512 + 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How shards are named and how large they get."""

    name: str = "train"
    """Name of the split; shards are ``NAME-000000.tar``."""
    shard_size: int = 10_000
    """Most samples in a shard."""
    shard_bytes: int = 300_000_000
    """Most bytes in a shard (before compression); one larger image gets a shard of its own."""
    gzip: bool = False
    """Write ``.tar.gz``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """The whole build, decided before the first byte is written."""

    jobs: tuple[ShardJob, ...]
    num_samples: int
    digest: str
    """Of the input's names, sizes and times, and of every choice that shapes the output."""


def plan_build(corpus: Corpus, layout: Layout, target: Path, treatment: Treatment | None = None) -> BuildPlan:
    """Cuts a corpus into shards, in its order."""
    treatment = treatment or Treatment()
    key_width = max(_MIN_KEY_WIDTH, len(str(len(corpus.records) - 1)))
    suffix = ".tar.gz" if layout.gzip else ".tar"
    jobs, start = [], 0
    for number, records in enumerate(_cut(corpus.records, layout)):
        path = str(target / f"{layout.name}-{number:06d}{suffix}")
        job = ShardJob(
            path=path, first_number=start, key_width=key_width, records=records, treatment=treatment
        )
        jobs.append(job)
        start += len(records)
    return BuildPlan(jobs=tuple(jobs), num_samples=start, digest=_digest(corpus, jobs, treatment))


def save_plan(plan: BuildPlan, target: Path) -> None:
    """Records that this build was begun in `target`."""
    content = {
        "version": _VERSION,
        "digest": plan.digest,
        "shards": len(plan.jobs),
        "samples": plan.num_samples,
    }
    # Tasks of one array may begin at the same moment: all of them write the same.
    write_whole(target / PLAN_FILE, json.dumps(content) + "\n")


def saved_digest(target: Path) -> str | None:
    """Digest of the build that was begun in `target`; None when there was none."""
    file = target / PLAN_FILE
    if not file.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return str(content["digest"])
    except (ValueError, KeyError, TypeError) as fault:
        raise DataError(f"{file}: not the plan of a build ({fault}); begin anew with --fresh") from fault


def _cut(records: list[Record], layout: Layout) -> list[tuple[Record, ...]]:
    shards: list[tuple[Record, ...]] = []
    start, num_bytes = 0, 0
    for place, record in enumerate(records):
        texts = len(record.caption or "") + len(record.fields or "")
        size = record.image.size + sum(span.size for _, span in record.extras) + texts + _BYTES_PER_SAMPLE
        full = place - start == layout.shard_size or num_bytes + size > layout.shard_bytes
        if full and place > start:
            shards.append(tuple(records[start:place]))
            start, num_bytes = place, 0
        num_bytes += size
    return [*shards, tuple(records[start:])]


def _digest(corpus: Corpus, jobs: list[ShardJob], treatment: Treatment) -> str:
    """Of everything that decides about the bytes that are written, except those of the images themselves."""
    state = xxhash.xxh3_128()
    for text in (str(_VERSION), treatment.fingerprint(), corpus.kind, *corpus.classes, *corpus.stamps):
        state.update(text.encode(errors="surrogateescape") + b"\0")
    for job in jobs:
        state.update(f"{Path(job.path).name} {job.first_number} {job.key_width}\0".encode())
        for record in job.records:
            chosen = f"{record.name}\0{record.key}\0{record.label}\0{record.caption}\0{record.fields}\0"
            state.update(chosen.encode(errors="surrogateescape"))
    return state.hexdigest()
