"""JoinedIndex: several corpora as one index, one after the other: what a mixture is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from configs.data import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex, open_index


class JoinedIndex(ShardIndex):
    """The samples of all members under one numbering, with the classes of the first."""

    def __init__(self, members: Sequence[ShardIndex]) -> None:
        first = members[0]
        self.names = _distinct_names(members)
        """Of the members; no two are the same."""
        super().__init__(
            folder=first.folder,
            name=" + ".join(self.names),
            split=first.split,
            classes=first.classes,
            shards=tuple(
                replace(shard, name=f"{name}/{shard.name}")
                for name, member in zip(self.names, members, strict=True)
                for shard in member.shards
            ),
        )
        self.members = tuple(members)
        self.first_shards = np.concatenate([[0], np.cumsum([len(member.shards) for member in members])])

    @cached_property
    def digest(self) -> str:
        """Identifies the corpora and their order."""
        return xxhash.xxh3_128_hexdigest(" ".join(member.digest for member in self.members).encode())

    def rows(self, shard: int) -> NDArray[np.void]:
        """SAMPLE rows of a shard."""
        member = int(np.searchsorted(self.first_shards, shard, side="right")) - 1
        return self.members[member].rows(shard - int(self.first_shards[member]))


def open_training(data: DataConfig) -> ShardIndex:
    """The index of ``data.train``, joined with those of ``data.mixture`` where there are any."""
    first = open_index(data.train)
    if not data.mixture:
        return first
    members = [first, *(open_index(corpus.train) for corpus in data.mixture)]
    for number, (member, corpus) in enumerate(zip(members[1:], data.mixture, strict=True)):
        # One map of classes: a label is a row of the classifier, and two corpora's numbers would mean two things.
        if member.classes and member.classes != first.classes:
            raise DataError(
                f"data.mixture[{number}]: the class map of {corpus.train!r} ({len(member.classes)} classes) is not "
                f"that of {data.train!r} ({len(first.classes)} classes); build both with the same classes (--classes)"
            )
    return JoinedIndex(members)


def _distinct_names(members: Sequence[ShardIndex]) -> tuple[str, ...]:
    """Their own; behind those of their folders where two are the same, as of builds without --name; else numbered."""
    for names in ([member.name for member in members], [f"{m.folder.name}/{m.name}" for m in members]):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{number}/{member.name}" for number, member in enumerate(members))
