from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline.index import open_index
from data_pipeline.inspection.exclude import exclude
from tests.support.shards import make_shards


def without(folder: Path, out: Path, sample_id: int) -> str:
    exclude(open_index(str(folder)), np.array([sample_id]), out, why=[{"key": str(sample_id)}])
    return open_index(str(out)).digest


def test_what_is_left_out_is_part_of_the_digest(tmp_path: Path) -> None:
    whole = make_shards(tmp_path / "all", [4, 4])
    first = without(tmp_path / "all", tmp_path / "a", 1)
    assert len({whole.digest, first, without(tmp_path / "all", tmp_path / "b", 2)}) == 3
    assert without(tmp_path / "all", tmp_path / "c", 1) == first


def test_leaving_out_one_after_the_other_is_leaving_out_both(tmp_path: Path) -> None:
    make_shards(tmp_path / "all", [4, 4])
    without(tmp_path / "all", tmp_path / "a", 1)
    both = exclude(
        open_index(str(tmp_path / "all")), np.array([1, 6]), tmp_path / "b", why=[{"key": "1"}, {"key": "6"}]
    )
    assert without(tmp_path / "a", tmp_path / "ab", 5) == both.digest
