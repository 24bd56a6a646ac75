"""What a plan found out is there when the recipe is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.estimates import Estimate, find_estimate, keep_estimate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_an_estimate_is_found_by_recipe_and_number_of_gpus() -> None:
    keep_estimate("a", Estimate(hours=8.0, num_ranks=4))
    keep_estimate("a", Estimate(hours=3.0, num_ranks=16))
    assert find_estimate("a", 4) == Estimate(hours=8.0, num_ranks=4)
    assert find_estimate("a", 16) == Estimate(hours=3.0, num_ranks=16)
    assert find_estimate("b", 4) is None


def test_the_nearest_number_of_gpus_is_taken_and_the_work_divided() -> None:
    keep_estimate("a", Estimate(hours=8.0, num_ranks=4))
    found = find_estimate("a", 8)
    assert found is not None and found.hours_on(8) == 4.0


def test_a_cache_that_cannot_be_read_or_written_is_no_failure(cache: Path) -> None:
    (cache / "mirada").write_text("a file where the folder would be")
    keep_estimate("a", Estimate(hours=8.0, num_ranks=4))
    assert find_estimate("a", 4) is None


def test_a_broken_file_counts_as_none(cache: Path) -> None:
    keep_estimate("a", Estimate(hours=8.0, num_ranks=4))
    (cache / "mirada" / "plans" / "a.json").write_text("{")
    assert find_estimate("a", 4) is None
