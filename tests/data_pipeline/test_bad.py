"""Too many bad samples end in a table; one of several ranks leaves the end to all of them."""

from __future__ import annotations

import pytest

from data_pipeline.bad import BadSample, BadSamples
from data_pipeline.errors import DataError


def bad(number: int, reason: str = "truncated", shard: str = "a.tar") -> BadSample:
    return BadSample(sample_id=number, shard=shard, key=f"{number:06d}", reason=reason)


def test_an_image_counts_once_and_is_drained_once() -> None:
    samples = BadSamples(num_samples=10, max_fraction=0.2)
    samples.add([bad(3), bad(3)])
    samples.add([bad(3), bad(5, "damaged")])
    assert samples.counts() == {"truncated": 1, "damaged": 1}
    assert samples.drain() == [bad(3), bad(5, "damaged")]
    samples.add([bad(3)])
    assert samples.drain() == []


@pytest.mark.parametrize("allowed", [0.19, 0.2])
def test_the_allowed_fraction_itself_is_allowed(allowed: float) -> None:
    samples = BadSamples(num_samples=10, max_fraction=allowed)
    samples.add([bad(1)])
    if allowed == 0.2:
        samples.add([bad(2)])
    else:
        with pytest.raises(
            DataError, match=r"^2 of 10 images cannot be used \(2 truncated\); .* allows 0.19"
        ):
            samples.add([bad(2)])


def test_the_table_has_a_line_per_reason_with_the_first_sample() -> None:
    samples = BadSamples(num_samples=10, max_fraction=0.2)
    with pytest.raises(DataError) as caught:
        samples.add([bad(1, "damaged", "b.tar"), bad(2), bad(7, shard="c.tar")])
    assert str(caught.value).splitlines()[1:] == [
        "    images  shards  reason                first: shard, key",
        "         2       2  truncated             a.tar, '000002'",
        "         1       1  damaged               b.tar, '000001'",
    ]


def test_one_of_several_ranks_never_stops_alone() -> None:
    samples = BadSamples(num_samples=10, max_fraction=0.0, world_size=2)
    samples.add([bad(1), bad(2)])
    assert samples.drain() == [bad(1), bad(2)]
