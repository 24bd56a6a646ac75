"""launch.attention_search.space: what is under the limit, by trying every path; and what is said where nothing is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from configs.attention import SupernetConfig
from configs.base import ConfigError
from launch.attention_search.space import Space

CONFIG = SupernetConfig.model_validate(
    {"choices": ["none", {"name": "se", "reduction": 16}, {"name": "cbam"}]}
)
COSTS = {"stages": [1, 3], "first": 1000, "more": [[0, 10, 700], [0, 5, 90]]}


def space(limit: float | None = None) -> Space:
    return Space.of(CONFIG, COSTS, max_flops=limit)


def test_operations_of_a_path_add_up() -> None:
    assert [space().flops(path) for path in ((0, 0), (1, 2), (2, 1))] == [1000, 1100, 1705]


@pytest.mark.parametrize(
    ("limit", "count"), [(None, 9), (1000, 1), (1004.9, 1), (1005, 2), (1790, 9), (1789, 8)]
)
def test_members_are_the_paths_up_to_the_limit(limit: float | None, count: int) -> None:
    every = itertools.product(range(3), repeat=2)
    assert space(limit).members() == [path for path in every if limit is None or space().flops(path) <= limit]
    assert len(space(limit).members()) == count


def test_a_path_goes_through_the_study_and_back() -> None:
    for path in space().members():
        assert space().path(space().settings(path)) == path
    assert space().settings((1, 0)) == {"stage 1": {"name": "se", "reduction": 16.0}, "stage 3": None}
    assert space().describe((1, 0)) == "stage 1 se reduction 16, stage 3 none"
    study = space().study(trials=3, workers=2, seed=1)
    assert list(study.space) == ["stage 1", "stage 3"] and study.prune is None


def test_a_limit_below_every_network_is_an_error_that_names_the_cheapest() -> None:
    with pytest.raises(ConfigError, match=r"--max-flops 999: .* \(stage 1 none, stage 3 none\) takes 1,000"):
        space(999)


def test_too_many_networks_are_an_error() -> None:
    costs = {"stages": list(range(13)), "first": 1, "more": [[0, 1, 1]] * 13}
    with pytest.raises(
        ConfigError, match=r"3 choices in 13 stages are 1,594,323 networks, and at most 1,000,000"
    ):
        Space.of(CONFIG, costs, max_flops=None)


def test_what_is_written_down_is_read_again() -> None:
    assert Space.of(CONFIG, space(1005).costs, max_flops=1005) == replace(space(), max_flops=1005)
