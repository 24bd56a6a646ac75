"""What the scale figures are made of, at sizes that can be told in advance."""

from __future__ import annotations

import pytest

from benchmarks.scaling import following, joining, order, saving


def test_a_checkpoint_of_many_ranks_has_the_files_that_arithmetic_says() -> None:
    found = {num_ranks: saving.save(num_ranks) for num_ranks in (1, 4)}
    for num_ranks, costs in found.items():
        assert costs["files"] == 3 * num_ranks + 3  # the model, shared.pt and the manifest come once
        assert costs["operations"] > 5 * costs["files"]
    per_rank = (found[4]["operations"] - found[1]["operations"]) / 3
    assert 3 * 3 < per_rank < 3 * 10  # three files; what is left does not grow


def test_the_largest_share_shrinks_with_the_ranks_down_to_the_model_itself() -> None:
    parameters = 1_000_000
    assert saving.bytes_per_rank(parameters, 1) == 20 * parameters
    assert saving.bytes_per_rank(parameters, 4) == (4 + 16 / 4) * parameters


def test_ranks_that_are_threads_meet_and_reduce_over_real_sockets() -> None:
    joined = joining.join_best(4, rounds=2)
    assert joined["ranks"] == 4
    assert joined["sockets"] >= 4 * 3  # both ends of six connections
    assert joined["join_s"] > 0 and joined["first_reduce_s"] > 0


def test_a_node_reads_its_share_of_the_shards() -> None:
    read = order.measure_order(1_000_000, (8, 64), rounds=1)
    assert read[8]["shards"] == read[64]["shards"] == 100
    assert read[8]["node_shards"] == 100
    assert read[64]["node_shards"] < 100
    assert read[8]["index_mb"] == pytest.approx(17, rel=0.01)  # 17 bytes per sample
    assert 0 < read[64]["open_s"] < 10


def test_what_each_rank_is_told_grows_with_the_ranks_and_the_log_does_not_depend_on_them() -> None:
    few, many = following.comparing(8), following.comparing(800)
    assert many["gather_bytes"] == pytest.approx(100 * few["gather_bytes"], rel=0.05)
    assert 100 < following.log_costs()["event_bytes"] < 2000
