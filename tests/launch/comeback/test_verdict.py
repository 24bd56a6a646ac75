"""What is kept about the starts of a job, and found again by the next of them and by `mirada status`."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.comeback.attempts import RankEnd, count_ends, read_ends, record_end
from launch.comeback.verdict import Action, Failure, Verdict, read_gave_up, read_history, write_verdict
from launch.following.run_state import read_notes
from launch.submission.record import attempt_folder

FAILURE = Failure(code=1, rank=3, node="n2", step=7, line="ValueError: no image")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "launch").mkdir()
    return tmp_path


def verdict(action: Action = "requeue", reason: str = "stopped") -> Verdict:
    return Verdict(
        action=action,
        reason=reason,
        failure=FAILURE,
        saved_step=4,
        exclude=("n2", "n3"),
        time=1.5,
    )


def test_the_ends_of_ranks_are_read_in_rank_order_as_they_were_written(run_folder: Path) -> None:
    folder = attempt_folder(run_folder, "17_3", 0)
    ends = [
        RankEnd(rank=rank, num_ranks=12, node="n1", code=rank, last_line="Ärger", time=2.0)
        for rank in range(12)
    ]
    assert count_ends(folder) == 0
    for end in reversed(ends):
        record_end(folder, end)
    assert read_ends(folder) == tuple(ends)
    assert count_ends(folder) == 12


def test_a_rank_that_tells_its_end_twice_has_one(run_folder: Path) -> None:
    folder = attempt_folder(run_folder, "17", 0)
    for code in (1, 75):
        record_end(folder, RankEnd(rank=0, num_ranks=2, node="n1", code=code))
    assert [end.code for end in read_ends(folder)] == [75]


def test_history_is_that_of_earlier_starts_of_the_same_job_in_their_order(run_folder: Path) -> None:
    for job_id, restart in [("17", 0), ("17", 2), ("17", 10), ("18", 1)]:
        write_verdict(run_folder, verdict(reason=f"{job_id}.{restart}"), job_id=job_id, restart=restart)
    history = read_history(run_folder, job_id="17", before=11)
    assert [known.reason for known in history] == ["17.0", "17.2", "17.10"]
    assert history[0] == verdict(reason="17.0")
    assert [known.reason for known in read_history(run_folder, job_id="17", before=10)] == ["17.0", "17.2"]


@pytest.mark.parametrize("action", ["give_up", "stop"])
def test_what_was_before_an_end_counts_no_more_once_somebody_started_the_job_again(
    run_folder: Path, action: Action
) -> None:
    for restart, done in enumerate(["requeue", action, "requeue"]):
        write_verdict(run_folder, verdict(done, reason=str(restart)), job_id="17", restart=restart)
    assert [known.reason for known in read_history(run_folder, job_id="17", before=3)] == ["2"]


def test_the_reason_of_a_give_up_is_where_status_looks_until_the_run_goes_on(run_folder: Path) -> None:
    assert read_gave_up(run_folder) is None
    write_verdict(run_folder, verdict("give_up", reason="three times"), job_id="17", restart=2)
    noted = read_gave_up(run_folder)
    assert noted is not None and (noted.reason, noted.job_id, noted.restart) == ("three times", "17", 2)
    assert read_notes(run_folder).gave_up == "three times"
    write_verdict(run_folder, verdict("finished"), job_id="18", restart=0)
    assert read_gave_up(run_folder) is None


def test_a_failure_says_who_where_and_when() -> None:
    assert str(FAILURE) == "rank 3 on n2 ended with exit code 1 after step 7: ValueError: no image"
    silent = Failure(code=None, rank=0, node="n1", step=0, line="")
    assert str(silent) == "rank 0 on n1 ended without a word before the first step"


def test_a_verdict_says_what_happens_why_and_without_whom() -> None:
    assert str(verdict()) == "requeue: stopped; without n2, n3"
