"""CaptionReader: the text that stands beside an image in its tar, found without a place of its own in the index."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, TarError
from data_pipeline.index import ShardIndex
from data_pipeline.scan import MAX_BYTES, Member, list_members
from data_pipeline.shard import Shard
from data_pipeline.storage.files import ShardFiles

_BLOCK = 512
_MOST_MEMBERS = 4096
"""Between two indexed images: what a tar may put in the way of a caption."""
_MOST_NAMED = 10


def refuse_missing_captions(index: ShardIndex, *, max_fraction: float) -> None:
    """DataError if the index knows of more samples without text than this; those it does not know of are met later."""
    missing = {
        shard.name: shard.num_samples - shard.num_captions
        for shard in index.shards
        if shard.num_captions is not None and shard.num_captions < shard.num_samples
    }
    total = sum(missing.values())
    if total <= max_fraction * index.num_samples:
        return
    named = ", ".join(f"{name} ({count:,})" for name, count in list(missing.items())[:_MOST_NAMED])
    more = f" and {len(missing) - _MOST_NAMED:,} more" if len(missing) > _MOST_NAMED else ""
    raise DataError(
        f"{total:,} of {index.num_samples:,} samples of {index.name!r} have no caption (no text in a '.txt' beside the "
        f"image), in {len(missing):,} of {len(index.shards):,} shards: {named}{more}; data.max_bad_fraction allows "
        f"{max_fraction:g} of them. Build the shards with a 'caption' column, leave such samples out, or raise it"
    )


class CaptionReader:
    """Reads the ``.txt`` of samples: a sample's files are adjacent, so it lies near the image, before or behind it."""

    def __init__(self, index: ShardIndex, files: ShardFiles | None = None) -> None:
        self._index = index
        self._files = files or ShardFiles(index.shards)

    def read(self, sample_ids: NDArray[np.int64]) -> list[bytes]:
        """UTF-8 as it was stored; empty where a sample has none or its tar is damaged there, and for padding (-1)."""
        shards, rows = self._index.locate(sample_ids.clip(min=0))
        pairs = zip(sample_ids.tolist(), shards.tolist(), rows.tolist(), strict=True)
        return [b"" if sample_id < 0 else self._read(shard, row) for sample_id, shard, row in pairs]

    def _read(self, shard: int, row: int) -> bytes:
        offset, start = int(self._index.rows(shard)["offset"][row]), 0
        if row > 0:  # everything of this sample lies behind the image of the one before
            before = self._index.rows(shard)[row - 1]
            start = int(before["offset"]) + -(-int(before["size"]) // _BLOCK) * _BLOCK
        content = _Tail(self._files, self._index.shards[shard], start)
        try:
            member = self._find(content, offset - start)
        except TarError:  # a sample without text, and no more than that: its image may be sound
            return b""
        if member is None or member.size > MAX_BYTES["txt"]:
            return b""
        return content[member.offset : member.offset + member.size]

    def _find(self, content: _Tail, image: int) -> Member | None:
        text, key = None, None
        for member in islice(list_members(content, name=content.name), _MOST_MEMBERS):
            if member.name.rpartition("/")[2].startswith((".", "__")):
                continue
            if key is not None and member.key != key:
                break
            if member.offset == image:
                key = member.key
                text = text if text is not None and text.key == key else None
            elif member.suffix == "txt":
                text = member
        return text if key is not None else None


class _Tail:
    """A shard from a byte on, of which only the asked parts are read."""

    def __init__(self, files: ShardFiles, shard: Shard, start: int) -> None:
        self.name = shard.name
        self._files = files
        self._url = shard.url
        self._start = start
        self._size = files.size(shard.url)

    def __len__(self) -> int:
        return self._size - self._start

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(len(self))
        return self._files.read(self._url, self._start + start, stop - start)
