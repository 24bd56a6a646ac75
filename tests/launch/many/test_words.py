"""Rank 0 and the other ranks of a worker go through their trials in step."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from launch.many import words as module
from launch.many.words import Words


def of_rank(folder: Path, rank: int, *, restart: int = 0, size: int = 3) -> Words:
    environ = {
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restart),
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
    }
    return Words.of(folder, environ)


def test_all_ranks_get_every_trial_in_order_and_the_end(tmp_path: Path) -> None:
    heard: dict[int, list[list[str] | None]] = {1: [], 2: []}
    codes: dict[int, int] = {}

    def listen(rank: int) -> None:
        words = of_rank(tmp_path, rank)
        while (arguments := words.next_trial()) is not None:
            heard[rank].append(arguments)
            words.say_done(rank)
        codes[rank] = words.end_code

    threads = [threading.Thread(target=listen, args=(rank,)) for rank in heard]
    for thread in threads:
        thread.start()
    leader = of_rank(tmp_path, 0)
    for number in range(3):
        leader.say_trial([f"trial={number}"])
        assert leader.wait_for_others() == [1, 2]
    leader.say_end(75)
    for thread in threads:
        thread.join(timeout=120)
    assert all(said == [["trial=0"], ["trial=1"], ["trial=2"]] for said in heard.values())
    assert codes == {1: 75, 2: 75}


def test_what_an_earlier_start_said_counts_no_more(tmp_path: Path) -> None:
    of_rank(tmp_path, 0).say_end(0)
    leader, other = of_rank(tmp_path, 0, restart=1), of_rank(tmp_path, 1, restart=1)
    leader.say_trial(["new"])
    assert other.next_trial() == ["new"]


def test_a_rank_that_never_ends_its_trial_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OTHERS_S", 0.3)
    leader = of_rank(tmp_path, 0)
    leader.say_trial(["x"])
    with pytest.raises(TimeoutError, match="2 ranks did not end their trial"):
        leader.wait_for_others()


def test_alone_nothing_is_written(tmp_path: Path) -> None:
    alone = of_rank(tmp_path / "words", 0, size=1)
    alone.say_trial(["x"])
    assert alone.wait_for_others() == []
    alone.say_end(0)
    assert not (tmp_path / "words").exists()
