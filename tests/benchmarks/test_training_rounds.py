"""Rates of interleaved trainings become rows whose ratios are taken within a round."""

from __future__ import annotations

import pytest

from benchmarks.training_rounds import Setting, rows_of

SETTING = Setting(recipe="any", global_batch=64, turn=8)


def test_ratios_are_taken_round_by_round_against_the_first() -> None:
    """The machine slows down by half from round to round, and ours is always a tenth faster."""
    rows = rows_of({"peer": [100.0, 50.0, 25.0], "ours": [110.0, 55.0, 27.5]}, SETTING)
    assert [row["name"] for row in rows] == ["peer", "ours"]
    assert rows[0]["ratio"] == 1.0
    assert rows[1]["ratio"] == pytest.approx(1.1)
    assert rows[1]["middle"] == "1.100-1.100"
    assert rows[1]["spread"] == "27.5-110.0"
    assert rows[1]["step_s"] == pytest.approx(64 / 55.0)
