from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import pytest

from data_pipeline.workers import Workers
from tests.support.dying import Dying, Failing


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost_or_comes_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Workers(Dying(tmp_path, (13,), deaths=1), num_workers=3, prefetch=2, persistent=True)
    with caplog.at_level(logging.WARNING):
        assert list(islice(workers.items(5), 30)) == list(range(5, 35))
    assert "exited unexpectedly; new workers go on at step 1" in caplog.text
    assert list(workers.items(3, 9)) == list(range(3, 9))  # replaced for good


@pytest.mark.slow
def test_workers_that_die_again_and_again_end_the_run_with_advice(tmp_path: Path) -> None:
    workers = Workers(Dying(tmp_path, (2,), deaths=9), num_workers=1, prefetch=1, persistent=False)
    with pytest.raises(RuntimeError, match=r"died 4 times within 100 batches; .* lower data.workers"):
        list(workers.items(0, 4))
    assert len(list(tmp_path.iterdir())) == 4


def test_an_error_of_the_program_is_no_death() -> None:
    with pytest.raises(RuntimeError, match="no step 0"):
        next(Workers(Failing(), num_workers=1, prefetch=1, persistent=False).items(0, 3))


def test_without_processes_the_items_are_the_same(tmp_path: Path) -> None:
    workers = Workers(Dying(tmp_path, (), deaths=0), num_workers=0, prefetch=1, persistent=False)
    assert list(workers.items(2, 6)) == [2, 3, 4, 5]
