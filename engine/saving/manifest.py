"""Manifest: what a checkpoint consists of, written last; a folder of which it holds true is a whole checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.shard import checksum
from data_pipeline.whole_file import write_whole

MANIFEST = "manifest.json"
_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Who saved what, and size and fingerprint of each file."""

    step: int
    world_size: int
    zero_stage: int
    run_digest: str
    files: Mapping[str, Sequence[Any]]
    """Path within the checkpoint -> bytes, and XXH3 (128 bits, hexadecimal): it finds damage, not forgery."""

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(int(size) for size, _ in self.files.values())

    def write(self, folder: Path) -> None:
        """Puts it into the checkpoint's folder, with a fingerprint of its own."""
        fields = asdict(self)
        content = {"format": _FORMAT, "digest": _fingerprint(fields), **fields}
        write_whole(folder / MANIFEST, json.dumps(content, indent=1))

    def mismatch(self, folder: Path, names: Sequence[str]) -> str | None:
        """What is wrong with the first of these files that is not as it was written, or None."""
        for name in names:
            path, (size, digest) = folder / name, self.files[name]
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if checksum(path) != digest:
                return f"{name} has other contents than were written"
        return None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint; ValueError or OSError when there is none that can be used."""
    content = json.loads((folder / MANIFEST).read_bytes())
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise ValueError(f"not a manifest of format {_FORMAT}: of another version of Mirada, or damaged")
    if content.pop("digest", None) != _fingerprint(content):
        raise ValueError("it has other contents than were written")
    return Manifest(**content)


def _fingerprint(fields: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()
