"""WrittenShard: what became of one shard, kept beside it until the index of the whole build is written."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.packing.record import Skipped
from data_pipeline.shard import Shard
from data_pipeline.whole_file import write_whole

_FOLDER = ".build"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A shard as its writer saw it."""

    path: str
    num_samples: int
    """0 when every image was left out; then there is no tar."""
    num_bytes: int
    digest: str
    num_captions: int
    strangers: tuple[str, ...]
    """Records that are no image of a known kind by content."""
    skipped: tuple[Skipped, ...]

    @property
    def shard(self) -> Shard:
        """Its entry in the index."""
        return Shard(
            name=Path(self.path).name,
            url=self.path,
            num_samples=self.num_samples,
            num_bytes=self.num_bytes,
            digest=self.digest,
            num_captions=self.num_captions,
        )


def save_written(written: WrittenShard) -> None:
    """Notes a shard whose tar is about to appear."""
    note = _note(written.path)
    note.parent.mkdir(exist_ok=True)
    content = {
        "num_samples": written.num_samples,
        "num_bytes": written.num_bytes,
        "digest": written.digest,
        "num_captions": written.num_captions,
        "strangers": written.strangers,
        "skipped": [[skipped.name, skipped.reason] for skipped in written.skipped],
    }
    write_whole(note, json.dumps(content))


def load_written(path: str) -> WrittenShard | None:
    """What became of the shard at `path`; None when it is not there, or not whole."""
    try:
        content = json.loads(_note(path).read_text(encoding="utf-8"))
        there = content["num_samples"] == 0 or os.stat(path).st_size == content["num_bytes"]
    except FileNotFoundError:
        return None
    if not there:
        return None
    return WrittenShard(
        path=path,
        num_samples=content["num_samples"],
        num_bytes=content["num_bytes"],
        digest=content["digest"],
        num_captions=content["num_captions"],
        strangers=tuple(content["strangers"]),
        skipped=tuple(Skipped(name, reason) for name, reason in content["skipped"]),
    )


def remove_notes(target: Path) -> None:
    """Deletes the notes of a build: the index has taken their place, or the build is given up."""
    shutil.rmtree(target / _FOLDER, ignore_errors=True)


def _note(path: str) -> Path:
    shard = Path(path)
    return shard.parent / _FOLDER / f"{shard.name}.json"
