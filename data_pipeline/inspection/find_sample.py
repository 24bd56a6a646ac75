"""One sample by its key: its files, its label and caption, and its image as a file."""

from __future__ import annotations

import mmap
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.pixels.decode import DecodeError, decode, read_header
from data_pipeline.scan import SUFFIXES, Member, list_members
from data_pipeline.storage.files import local_shard

_MAX_TEXT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSample:
    """All that a shard says about one key."""

    key: str
    shard: str
    sample_id: int | None
    """None for a sample of the tar that its index leaves out."""
    label: int
    class_name: str | None
    caption: str | None
    files: dict[str, tuple[int, int]]
    """Offset in the uncompressed tar and size of each file, by suffix."""
    state: str
    """Width, height and format; or why the image cannot be used."""
    suffix: str
    image: bytes

    def as_json(self) -> dict[str, Any]:
        """Plain values for `json`, without the image."""
        return {name: value for name, value in asdict(self).items() if name != "image"}


def find_sample(index: ShardIndex, key: str) -> FoundSample:
    """Looks through the shards in order for a key; DataError if none has it."""
    example: str | None = None
    for number, shard in enumerate(index.shards):
        path = local_shard(shard.url, shard)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for found, members in groupby(list_members(content, name=shard.name), lambda member: member.key):
                example = example or found
                if found == key:
                    return _describe(index, number, key, list(members), content)
    raise DataError(
        f"no sample of {str(index.folder)!r} has the key {key!r}; keys there look like {example!r} (the file name up "
        "to its first dot, with its folder)"
    )


def save_image(sample: FoundSample, target: Path) -> Path:
    """Writes the image's own bytes to a file, or as KEY.SUFFIX into a folder that is there; replaces nothing."""
    if target.is_dir():
        named = target / f"{sample.key}.{sample.suffix}"
        if not named.resolve().is_relative_to(target.resolve()) or sample.key.startswith("/"):
            raise DataError(
                f"key {sample.key!r} would leave the folder {str(target)!r}; name a file: --save FILE"
            )
        target = named
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(target, "xb") as file:
            file.write(sample.image)
    except FileExistsError:
        raise DataError(f"{str(target)!r} is there already; name another file") from None
    return target


def _describe(
    index: ShardIndex, number: int, key: str, members: list[Member], content: mmap.mmap
) -> FoundSample:
    by_suffix = {member.suffix: member for member in members}
    image = next((by_suffix[suffix] for suffix in SUFFIXES if suffix in by_suffix), None)
    if image is None:
        raise DataError(
            f"shard {index.shards[number].name!r}: key {key!r} has no image, only {sorted(by_suffix)}; "
            "mirada data verify finds all such samples"
        )
    rows = np.flatnonzero(index.rows(number)["offset"] == image.offset)
    label = int(index.rows(number)["label"][rows[0]]) if rows.size else -1
    encoded = content[image.offset : image.offset + image.size]
    caption = by_suffix.get("txt")
    return FoundSample(
        key=key,
        shard=index.shards[number].name,
        sample_id=int(index.starts[number] + rows[0]) if rows.size else None,
        label=label,
        class_name=index.classes[label] if 0 <= label < len(index.classes) else None,
        caption=_text(content, caption) if caption is not None else None,
        files={member.suffix: (member.offset, member.size) for member in members},
        state=_state(encoded),
        suffix=image.suffix,
        image=encoded,
    )


def _text(content: mmap.mmap, member: Member) -> str:
    return content[member.offset : member.offset + min(member.size, _MAX_TEXT)].decode("utf-8", "replace")


def _state(encoded: bytes) -> str:
    try:
        header = read_header(encoded)
        decode(encoded, channels=3, header=header)
    except DecodeError as error:
        return f"cannot be used: {error.reason}"
    return f"{header.width} x {header.height}, {('JPEG', 'PNG', 'WebP')[header.format]}"
