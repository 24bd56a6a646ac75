"""An image that cannot be used is listed once."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.bad import BadSample
from engine.bad_list import BadList


def bad(number: int) -> BadSample:
    return BadSample(sample_id=number, shard="a.tar", key=f"{number:06d}", reason="truncated")


def test_an_image_met_by_two_ranks_or_after_a_restart_is_listed_once(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    first = BadList(path)
    assert first.add([bad(3), bad(7), bad(3)]) == [bad(3), bad(7)]
    assert first.add([bad(7)]) == []
    assert BadList(path).add([bad(3), bad(9)]) == [bad(9)]
    assert [json.loads(line)["sample_id"] for line in path.read_text().splitlines()] == [3, 7, 9]


def test_ranks_other_than_0_keep_no_list(tmp_path: Path) -> None:
    assert BadList(None).add([bad(1)]) == []
    assert list(tmp_path.iterdir()) == []
