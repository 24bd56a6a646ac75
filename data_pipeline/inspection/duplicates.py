"""Images of one index that stand in another too: hashes propose pairs, pixels confirm them.

hash both (cached) -> pairs within `radius` bits -> thumbnails of those -> pairs that differ by at most `difference`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.index import ShardIndex
from data_pipeline.inspection.hashing import NO_HASH, Hashes, hash_images, make_thumbnails
from data_pipeline.inspection.near_pairs import NearPairs, find_near_pairs
from data_pipeline.inspection.sample_names import SampleName, SampleNames
from data_pipeline.pixels.decode import Pixels

Ints = NDArray[np.int64]

_CHUNK = 8_192
"""Pairs whose thumbnails are compared at a time, which bounds memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """An image, and the most similar one of the other index."""

    sample: SampleName
    other: SampleName
    distance: int
    """Bits in which the hashes differ."""
    difference: float
    """1 - correlation of the grey thumbnails: 0 for the same picture, about 1 for unrelated ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """What was found."""

    found: tuple[Duplicate, ...]
    """In the order of the samples, each at most once."""
    num_proposed: int
    """Samples with a hash close to one of the others; the rest of them differ in their pixels."""
    num_without_hash: int
    """Samples that were not compared: not decodable, or of one colour."""
    num_others_without_hash: int

    @property
    def sample_ids(self) -> Ints:
        """Of the images that stand in the other index too."""
        return np.array([pair.sample.sample_id for pair in self.found], np.int64)

    def as_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        return asdict(self)


def find_duplicates(
    index: ShardIndex,
    against: ShardIndex,
    *,
    radius: int,
    difference: float,
    num_workers: int = 1,
) -> Duplicates:
    """The images of `index` that also stand in `against`, each with its most similar counterpart."""
    hashes = hash_images(index, num_workers=num_workers)
    others = hash_images(against, num_workers=num_workers)
    samples, other_samples = _Groups(hashes), _Groups(others)
    near = find_near_pairs(samples.hashes, other_samples.hashes, radius)
    ids, other_ids = samples.members(near.places), other_samples.members(near.other_places)
    thumbnails = make_thumbnails(index, ids, num_workers=num_workers)
    other_thumbnails = make_thumbnails(against, other_ids, num_workers=num_workers)
    best: dict[int, tuple[float, int, int]] = {}
    for pair_ids, pair_others, distances in _expanded(near, samples, other_samples):
        differences = _differences(
            thumbnails[np.searchsorted(ids, pair_ids)],
            other_thumbnails[np.searchsorted(other_ids, pair_others)],
        )
        for place in np.flatnonzero(differences <= difference).tolist():
            candidate = float(differences[place]), int(distances[place]), int(pair_others[place])
            sample_id = int(pair_ids[place])
            best[sample_id] = min(candidate, best.get(sample_id, candidate))
    return Duplicates(
        found=tuple(_described(index, against, best)),
        num_proposed=len(ids),
        num_without_hash=int((hashes == NO_HASH).sum()),
        num_others_without_hash=int((others == NO_HASH).sum()),
    )


class _Groups:
    """Samples by hash: many images may share one, and the search takes each hash once."""

    def __init__(self, hashes: Hashes) -> None:
        usable = np.flatnonzero(hashes != NO_HASH)
        order = usable[np.argsort(hashes[usable], kind="stable")]
        self.hashes, self._starts, self._counts = np.unique(
            hashes[order], return_index=True, return_counts=True
        )
        self._order = order.astype(np.int64)

    def of(self, place: int) -> Ints:
        """The samples with a hash, by the hash's place."""
        return self._order[self._starts[place] : self._starts[place] + self._counts[place]]

    def members(self, places: Ints) -> Ints:
        """The samples with any of these hashes, ascending."""
        groups = [self.of(place) for place in np.unique(places).tolist()]
        return np.sort(np.concatenate([np.empty(0, np.int64), *groups]))


def _expanded(near: NearPairs, samples: _Groups, others: _Groups) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Pairs of hashes as pairs of samples, with the distance of each, some thousands at a time."""
    pending: list[tuple[Ints, Ints, Ints]] = []
    num_pending = 0
    triples = zip(near.places.tolist(), near.other_places.tolist(), near.distances.tolist(), strict=True)
    for place, other_place, distance in triples:
        ours, theirs = samples.of(place), others.of(other_place)
        rows = max(1, _CHUNK // len(theirs))
        for start in range(0, len(ours), rows):
            part = ours[start : start + rows]
            first, second = np.repeat(part, len(theirs)), np.tile(theirs, len(part))
            pending.append((first, second, np.full(len(first), distance)))
            num_pending += len(first)
            if num_pending >= _CHUNK:
                yield _joined(pending)
                pending, num_pending = [], 0
    if pending:
        yield _joined(pending)


def _joined(parts: list[tuple[Ints, Ints, Ints]]) -> tuple[Ints, Ints, Ints]:
    first, second, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, distances


def _differences(first: Pixels, second: Pixels) -> NDArray[np.float32]:
    """1 - correlation, pair by pair: neither brightness nor contrast counts."""
    centred = [part - part.mean(axis=1, keepdims=True) for part in (first.astype(np.float32), second)]
    norms = np.linalg.norm(centred[0], axis=1) * np.linalg.norm(centred[1], axis=1)
    products = np.einsum("ij,ij->i", *centred)
    correlations: NDArray[np.float32] = products / np.maximum(norms, np.finfo(np.float32).tiny)
    return (1.0 - correlations).clip(0.0)


def _described(
    index: ShardIndex, against: ShardIndex, best: dict[int, tuple[float, int, int]]
) -> Iterator[Duplicate]:
    sample_ids = np.array(sorted(best), np.int64)
    other_ids = np.array([best[sample_id][2] for sample_id in sample_ids.tolist()], np.int64)
    names, other_names = SampleNames(index), SampleNames(against)
    for sample, other in zip(names.of(sample_ids), other_names.of(other_ids), strict=True):
        difference, distance, _ = best[sample.sample_id]
        yield Duplicate(sample=sample, other=other, distance=distance, difference=round(difference, 4))
    names.close()
    other_names.close()
