"""An image that cannot be used is listed once, and too many of them stop all ranks with one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from data_pipeline.bad import BadSample
from data_pipeline.errors import DataError
from engine.survival.bad_list import BadList
from engine.world import World
from tests.support.bad_run import NUM_SAMPLES, damaged_shards
from tests.support.run_distributed import start_ranks

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


class Source:
    num_samples = 100

    def __init__(self, *met: int) -> None:
        self._met = [bad(number) for number in met]

    def drain_bad(self) -> Sequence[BadSample]:
        drained, self._met = self._met, []
        return drained


def bad(number: int) -> BadSample:
    return BadSample(sample_id=number, shard="a.tar", key=f"{number:06d}", reason="truncated")


def bad_list(path: Path | None, *met: int, max_fraction: float = 1.0, data: str = "train") -> BadList:
    return BadList(path, Source(*met), max_fraction=max_fraction, data=data)


def test_an_image_met_by_two_ranks_or_after_a_restart_is_listed_once(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    first = bad_list(path)
    assert first.add([bad(3), bad(7), bad(3)]) == [bad(3), bad(7)]
    assert first.add([bad(7)]) == []
    assert bad_list(path).add([bad(3), bad(9)]) == [bad(9)]
    assert [json.loads(line)["sample_id"] for line in path.read_text().splitlines()] == [3, 7, 9]


def test_ranks_other_than_0_keep_no_list(tmp_path: Path) -> None:
    assert bad_list(None).add([bad(1)]) == []
    assert list(tmp_path.iterdir()) == []


def test_images_to_train_and_to_evaluate_on_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    assert bad_list(path, 3).agree(ALONE) == bad_list(path, 3, data="val").agree(ALONE) == [bad(3)]
    assert [json.loads(line)["data"] for line in path.read_text().splitlines()] == ["train", "val"]
    assert bad_list(path, 3).agree(ALONE) == bad_list(path, 3, data="val").agree(ALONE) == []


def test_a_line_cut_by_a_kill_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    bad_list(path, 3, 4).agree(ALONE)
    path.write_bytes(path.read_bytes()[:-9])
    assert bad_list(path, 3, 4, 5).agree(ALONE) == [bad(4), bad(5)]
    assert [json.loads(line)["sample_id"] for line in path.read_text().splitlines()] == [3, 4, 5]


def test_images_of_earlier_starts_count(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.jsonl"
    assert bad_list(path, 1, 2, max_fraction=0.02).agree(ALONE) == [bad(1), bad(2)]
    with pytest.raises(DataError, match=r"^3 of 100 images cannot be used \(3 truncated\); .* allows 0.02"):
        bad_list(path, 2, 3, max_fraction=0.02).agree(ALONE)


@pytest.mark.slow
def test_two_ranks_stop_together_with_the_table_once_both_have_met_too_many(tmp_path: Path) -> None:
    damaged_shards(tmp_path / "shards")
    program = ["tests/support/bad_run.py", str(tmp_path / "shards"), str(tmp_path / "run")]

    def run(max_fraction: float) -> tuple[list[int], list[str]]:
        ranks = start_ranks([*program, str(max_fraction)])
        return ranks.wait(), ranks.outputs

    codes, outputs = run(0.05)
    assert codes == [2, 2], outputs
    for output in outputs:
        assert f"of {NUM_SAMPLES} images cannot be used" in output
        assert "Traceback" not in output
        assert "not an image" in output and "first: shard, key" in output
    stopped = listed(tmp_path / "run")
    # Neither rank has met too many alone: those are the images of one of them.
    assert 0.05 * NUM_SAMPLES < len(stopped) == len(set(stopped))
    codes, outputs = run(1.0)
    assert codes == [0, 0], outputs
    resumed = listed(tmp_path / "run")
    assert resumed[: len(stopped)] == stopped
    assert sorted(resumed) == list(range(0, NUM_SAMPLES, 10))


def listed(run: Path) -> list[int]:
    return [json.loads(line)["sample_id"] for line in (run / "bad_samples.jsonl").read_text().splitlines()]
