from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.inspection.near_pairs import MAX_RADIUS, find_near_pairs


@settings(max_examples=40, deadline=None)
@given(
    radius=st.integers(0, MAX_RADIUS),
    num_hashes=st.integers(0, 300),
    num_others=st.integers(0, 60),
    seed=st.integers(0, 2**32),
)
def test_exactly_the_pairs_that_brute_force_finds(
    radius: int, num_hashes: int, num_others: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, num_hashes, dtype=np.uint64)
    others = rng.integers(0, 2**64, num_others, dtype=np.uint64)
    for place in range(min(num_hashes, num_others)):  # around the radius: just within, just beyond
        flipped = rng.choice(64, max(0, radius + int(rng.integers(-1, 2))), replace=False)
        others[place] = hashes[place] ^ np.uint64(sum(1 << int(bit) for bit in flipped))
    distances = np.bitwise_count(hashes[:, None] ^ others[None, :])
    places, other_places = np.nonzero(distances <= radius)
    near = find_near_pairs(hashes, others, radius)
    np.testing.assert_array_equal(near.places, places)
    np.testing.assert_array_equal(near.other_places, other_places)
    np.testing.assert_array_equal(near.distances, distances[places, other_places])


def test_many_candidates_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.inspection.near_pairs._CHUNK", 7)
    hashes = np.arange(40, dtype=np.uint64)
    near = find_near_pairs(hashes, hashes[:9], 1)
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None, :9])
    assert list(zip(near.places, near.other_places, strict=True)) == list(
        zip(*np.nonzero(distances <= 1), strict=True)
    )


def test_a_radius_that_finds_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 16 bits, not 17"):
        find_near_pairs(np.zeros(1, np.uint64), np.zeros(1, np.uint64), 17)
