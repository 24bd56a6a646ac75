"""Pairs of 64-bit hashes that differ in few bits: an exact search by multi-index hashing (Norouzi et al. 2012).

Cut into m bands, two hashes within `radius` bits of one another differ in at least one band by at most radius // m.
For each band the hashes are sorted by it, and the others are looked up there with each such difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

MAX_RADIUS = 16
_BITS = 64
_WIDEST_BAND = 22
"""Bits: the table of where each value of a band begins has 4 million entries then."""
_LOOKUP_COST = 4.0
"""Of one look-up, in comparisons of two hashes; only chooses the number of bands."""
_CHUNK = 4_000_000
"""Candidates compared at a time, which bounds memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearPairs:
    """All pairs of a hash and another that differ in few bits, in the order of their places."""

    places: Ints
    other_places: Ints
    distances: NDArray[np.uint8]
    """Bits in which they differ."""


def find_near_pairs(hashes: Hashes, others: Hashes, radius: int) -> NearPairs:
    """Every pair within `radius` bits; hashes that occur often are to be given once, since each pair is listed."""
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"a radius is 0 to {MAX_RADIUS} bits, not {radius}")
    num_bands = _choose_num_bands(radius, len(hashes), len(others))
    found = [np.empty(0, np.int64)]
    for band in range(num_bands):
        start, stop = band * _BITS // num_bands, (band + 1) * _BITS // num_bands
        for places, other_places in _agreeing(hashes, others, start, stop - start, radius // num_bands):
            near = np.bitwise_count(hashes[places] ^ others[other_places]) <= radius
            found.append(places[near] * len(others) + other_places[near])
    places, other_places = np.divmod(np.unique(np.concatenate(found)), max(1, len(others)))
    distances = np.bitwise_count(hashes[places] ^ others[other_places])
    return NearPairs(places=places, other_places=other_places, distances=distances)


def _choose_num_bands(radius: int, num_hashes: int, num_others: int) -> int:
    """Few wide bands need many look-ups, many narrow ones bring many candidates: the number that costs least."""

    def cost(num_bands: int) -> float:
        num_lookups = num_bands * num_others * _num_masks(num_bands, radius)
        return num_lookups * (_LOOKUP_COST + num_hashes / (1 << _BITS // num_bands))

    return min(range(-(-_BITS // _WIDEST_BAND), _BITS // 4), key=cost)


def _num_masks(num_bands: int, radius: int) -> int:
    width = -(-_BITS // num_bands)
    return sum(comb(width, differing) for differing in range(radius // num_bands + 1))


def _agreeing(
    hashes: Hashes, others: Hashes, start: int, width: int, differing: int
) -> Iterator[tuple[Ints, Ints]]:
    """Places of hashes and others that agree in a band but for `differing` bits, in chunks."""
    values, wanted = _band(hashes, start, width), _band(others, start, width)
    order = np.argsort(values, kind="stable")
    begins = np.concatenate([[0], np.cumsum(np.bincount(values, minlength=1 << width))])
    for mask in _masks(width, differing):
        looked_up = wanted ^ mask
        first = begins[looked_up]
        counts = begins[looked_up + 1] - first
        for part in _parts(counts):
            # The k-th candidate of a look-up stands k places behind its first.
            ends = np.cumsum(counts[part])
            within = np.arange(ends[-1]) - np.repeat(ends - counts[part], counts[part])
            yield (
                order[np.repeat(first[part], counts[part]) + within],
                np.repeat(np.arange(part.start, part.stop), counts[part]),
            )


def _band(hashes: Hashes, start: int, width: int) -> Ints:
    values: Ints = ((hashes >> np.uint64(start)) & np.uint64((1 << width) - 1)).astype(np.int64)
    return values


def _masks(width: int, differing: int) -> Iterator[int]:
    for number in range(differing + 1):
        for bits in combinations(range(width), number):
            yield sum(1 << bit for bit in bits)


def _parts(counts: Ints) -> Iterator[slice]:
    """Cuts look-ups into parts of some `_CHUNK` candidates each."""
    ends, start = np.cumsum(counts), 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK, side="right")))
        if ends[stop - 1] > before:
            yield slice(start, stop)
        start = stop
