"""ShardNames: a location as people write it -> the folder its shards lie in and what they are called.

/data/train  https://host/folder/  s3://bucket/prefix/  https://host/name-{000000..000099}.tar  https://host/{a,b}.tar
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.shard import find_shards, is_shard
from data_pipeline.storage.remote import list_folder
from data_pipeline.storage.source import is_remote, refuse_commands, resolve

_MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")
_PASSWORD = re.compile(r"^[^/]*//[^/@]*:[^/@]*@")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardNames:
    """Shards of one folder."""

    base: str
    """A local folder, or the URL of a remote one."""
    names: tuple[str, ...]

    @property
    def is_remote(self) -> bool:
        """Whether the shards are read over the network."""
        return is_remote(self.base)

    @property
    def urls(self) -> list[str]:
        """Where each shard lies."""
        return [f"{self.base}/{name}" for name in self.names]


def find_names(location: str) -> ShardNames:
    """The shards at a folder, a file or a pattern; DataError if there are none.

    A location is no shell's: no command in it is run, no variable in it replaced.
    """
    refuse_commands(location)
    place = resolve(location).removeprefix("file://")
    if not is_remote(place) and Path(place).is_dir():
        return _in_folder(Path(place))
    folder, _, last = place.rpartition("/")
    if is_shard(last):
        return ShardNames(base=_plain(folder or ".", location), names=_expanded(last, location))
    if is_remote(place):
        return _listed(_plain(place.rstrip("/"), location), location)
    return _in_folder(Path(place))


def _in_folder(folder: Path) -> ShardNames:
    return ShardNames(base=str(folder), names=tuple(path.name for path in find_shards(folder)))


def _listed(base: str, location: str) -> ShardNames:
    names = tuple(name for name in list_folder(f"{base}/") if is_shard(name))
    if not names:
        raise DataError(
            f"no shards are listed at {location!r}: a server without listings needs the names, as in "
            f"'{base}/name-{{000000..000099}}.tar'"
        )
    return ShardNames(base=base, names=names)


def _plain(folder: str, location: str) -> str:
    if is_remote(folder):
        if "?" in location or "#" in location:
            raise DataError(
                f"{location!r}: an address that ends in a query cannot be indexed, for it does not stay valid; "
                "give the plain address, and credentials by the environment"
            )
        if _PASSWORD.match(folder):
            raise DataError(
                "the address holds a password, which the index would keep for all to read; give credentials by the "
                "environment or ~/.netrc"
            )
    if _BRACES.search(folder):
        raise DataError(f"{location!r}: braces may stand in the file name only; index each folder by itself")
    return folder


def _expanded(pattern: str, location: str) -> tuple[str, ...]:
    """``a-{0..2}.tar`` -> a-0.tar a-1.tar a-2.tar; ``{a,b}.tar`` -> a.tar b.tar; any number of braces."""
    # Every other part stood in braces.
    parts = _BRACES.split(pattern)
    spans = [_span(part, location) for part in parts[1::2]]
    count = math.prod(map(len, spans))
    if count > _MAX_SHARDS:
        raise DataError(f"{location!r} names {count:,} shards; {_MAX_SHARDS:,} are allowed")
    choices = [_spelled(part, span) for part, span in zip(parts[1::2], spans, strict=True)]
    names = tuple(
        "".join(word for pair in zip(parts[::2], (*chosen, ""), strict=True) for word in pair)
        for chosen in product(*choices)
    )
    if len(set(names)) < len(names):
        raise DataError(f"{location!r} names a shard twice; name each once")
    return names


def _span(text: str, location: str) -> range:
    """The numbers, or the positions in the list, that braces stand for; a range is not spelled out yet."""
    bounds = _RANGE.fullmatch(text)
    if bounds is None and "," not in text:
        raise DataError(
            f"{location!r}: '{{{text}}}' is neither a range like {{000..099}} nor a list like {{a,b}}"
        )
    span = range(int(bounds[1]), int(bounds[2]) + 1) if bounds else range(text.count(",") + 1)
    if not span:
        raise DataError(f"{location!r}: the range '{{{text}}}' is empty; write the smaller number first")
    return span


def _spelled(text: str, span: range) -> list[str]:
    bounds = _RANGE.fullmatch(text)
    if bounds is None:
        return text.split(",")
    padded = any(bound.startswith("0") and len(bound) > 1 for bound in bounds.groups())
    width = max(map(len, bounds.groups())) if padded else 0
    return [f"{number:0{width}d}" for number in span]
