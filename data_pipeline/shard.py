"""Shard: one tar as the index describes it, wherever it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xxhash

from data_pipeline.errors import DataError
from data_pipeline.ranged_file import RangedFile
from data_pipeline.scan import HEADERS_ONLY, ScannedShard, scan_content, scan_shard
from data_pipeline.storage.files import local_shard
from data_pipeline.storage.remote import remote_size
from data_pipeline.storage.source import is_compressed, is_remote

_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tar."""

    name: str
    url: str
    num_samples: int
    num_bytes: int
    """Size of the file as it lies (compressed, if it is)."""
    digest: str
    """xxh3-128 of the file as it lies. Of a shard indexed over the network, where only its headers were read:
    `ScannedShard.digest`, which begins with "headers-" and says nothing about the images."""
    num_captions: int | None = None
    """Samples with text in a ``.txt``; None where the index was made before that was counted."""

    @property
    def is_checked_whole(self) -> bool:
        """Whether the digest covers every byte of the file, or only headers and labels."""
        return not self.digest.startswith(HEADERS_ONLY)

    def matches(self, path: Path) -> bool:
        """Whether a copy has this shard's digest: a copy of the file as it lies, or, where the digest covers headers
        only, of the tar in it."""
        if self.is_checked_whole:
            return checksum(path) == self.digest
        try:
            return scan_shard(path, name=self.name).digest == self.digest
        except DataError:
            return False


def is_shard(name: str) -> bool:
    """Whether a file's name says that it is a tar."""
    return name.endswith(_SUFFIXES)


def find_shards(folder: Path) -> list[Path]:
    """The tars of a folder in name order; DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder; give the folder that holds the shards")
    paths = sorted(path for path in folder.iterdir() if is_shard(path.name))
    if not paths:
        raise DataError(f"no shards in {str(folder)!r}: expected files ending in {', '.join(_SUFFIXES)}")
    return paths


def describe_shard(url: str) -> tuple[Shard, ScannedShard]:
    """A tar's entry in the index, and what it holds; of a remote one only the headers are fetched.

    A compressed one has no headers to be had alone: it is fetched whole, into the cache.
    """
    name = url.rpartition("/")[2]
    if is_remote(url):
        num_bytes = remote_size(url)
        whole = is_compressed(url)
        scanned = (
            scan_shard(local_shard(url), name=name)
            if whole
            else scan_content(RangedFile(url, num_bytes), name=name)
        )
        digest = scanned.digest
    else:
        scanned = scan_shard(local_shard(url), name=name)
        num_bytes, digest = Path(url).stat().st_size, checksum(Path(url))
    shard = Shard(
        name=name,
        url=url,
        num_samples=len(scanned.rows),
        num_bytes=num_bytes,
        digest=digest,
        num_captions=scanned.num_captions,
    )
    return shard, scanned


def checksum(path: Path) -> str:
    """xxh3-128 of a file, as written in the index."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()
