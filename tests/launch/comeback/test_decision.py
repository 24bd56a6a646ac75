"""What becomes of a job: every way in which a start can end, and what was decided before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from configs.cluster import RequeueConfig
from engine.survival.lifeline import EXIT_LOST
from engine.survival.preempt import EXIT_INTERRUPTED, EXIT_STOPPED
from engine.survival.watchdog import EXIT_HUNG
from launch.comeback.attempts import RankEnd
from launch.comeback.decision import HUNG, LOST, Situation, SlurmSays, decide
from launch.comeback.verdict import Verdict
from launch.supervise import INTERRUPTED, STOPPED

NODES = ("n1", "n2", "n3", "n4")
KILLED = 137


def ends(*codes: int | None, last_line: str = "", per_node: int = 1) -> tuple[RankEnd, ...]:
    """A rank for each code, the later the higher its number; None is a rank that left no word."""
    return tuple(
        RankEnd(
            rank=rank,
            num_ranks=len(codes),
            node=NODES[rank // per_node],
            code=code,
            last_line=last_line,
            time=float(rank),
        )
        for rank, code in enumerate(codes)
        if code is not None
    )


def verdict_on(
    *codes: int | None,
    policy: RequeueConfig | None = None,
    last_line: str = "",
    per_node: int = 1,
    **known: Any,
) -> Verdict:
    situation = Situation(
        ends=ends(*codes, last_line=last_line, per_node=per_node),
        num_ranks=len(codes),
        nodes=NODES[: len(codes) // per_node],
        **known,
    )
    return decide(situation, policy or RequeueConfig(), now=0.0)


def verdicts(
    starts: Sequence[dict[str, Any]], *, codes: Sequence[int] = (1, LOST), policy: RequeueConfig | None = None
) -> list[Verdict]:
    """The verdicts on one start after another, each knowing those before."""
    given: list[Verdict] = []
    for start in starts:
        given.append(verdict_on(*codes, policy=policy, history=tuple(given), **start))
    return given


def test_exit_codes_are_those_the_programs_end_with() -> None:
    assert (STOPPED, INTERRUPTED) == (EXIT_STOPPED, EXIT_INTERRUPTED)
    assert (LOST, HUNG) == (EXIT_LOST, EXIT_HUNG)


def test_a_run_whose_ranks_all_finished_is_finished() -> None:
    assert verdict_on(0, 0, saved_step=60).action == "finished"


def test_a_finished_run_stays_finished_when_slurm_wants_its_nodes_or_the_user_cancels_it() -> None:
    assert verdict_on(0, 0, slurm="requeueing", is_cancelled=True).action == "finished"


def test_a_run_that_saved_with_all_ranks_comes_back_without_a_failure() -> None:
    verdict = verdict_on(75, 75, saved_step=40)
    assert (verdict.action, verdict.failure, verdict.exclude) == ("requeue", None, ())
    assert str(verdict) == "requeue: stopped, saved up to step 40"


@pytest.mark.parametrize("number", [10, 12, 15])
def test_ranks_that_a_signal_ended_in_mid_import_were_stopped_and_did_not_fail(number: int) -> None:
    verdict = verdict_on(128 + number, 75)
    assert (verdict.action, verdict.failure, verdict.exclude) == ("requeue", None, ())
    assert verdict.reason == "stopped before anything was saved"


def test_what_the_user_cancelled_does_not_come_back() -> None:
    verdict = verdict_on(75, 75, is_cancelled=True, saved_step=40)
    assert str(verdict) == "stop: cancelled"


def test_a_job_that_scancel_ended_does_not_come_back() -> None:
    assert verdict_on(75, 75, slurm="ending").action == "stop"


def test_ctrl_c_is_for_good() -> None:
    assert verdict_on(130, 130).action == "stop"


@pytest.mark.parametrize("codes", [(75, 75), (KILLED, None), (1, 69)])
def test_what_slurm_requeues_by_itself_is_left_to_it(codes: tuple[int | None, ...]) -> None:
    verdict = verdict_on(*codes, slurm="requeueing")
    assert (verdict.action, verdict.failure) == ("leave", None)


def test_ranks_killed_at_the_time_limit_come_back_and_their_nodes_are_not_to_blame() -> None:
    verdict = verdict_on(None, KILLED, slurm="time limit", saved_step=20)
    assert (verdict.action, verdict.exclude) == ("requeue", ())
    assert verdict.reason == "over its time limit"


def test_a_mistake_is_never_tried_again_and_is_told_in_the_programs_words() -> None:
    verdict = verdict_on(2, 2, last_line="error: optim.lr: must be positive")
    assert str(verdict) == "give up: a mistake to correct: optim.lr: must be positive"


def test_a_failure_is_tried_again_and_names_the_rank_that_failed_first_of_its_own() -> None:
    verdict = verdict_on(69, 69, 1, 69, error="ValueError: no image", step=7, saved_step=4)
    assert verdict.action == "requeue"
    assert verdict.reason == "rank 2 on n3 ended with exit code 1 after step 7: ValueError: no image"


def test_without_an_event_log_the_ranks_last_line_says_why() -> None:
    verdict = verdict_on(1, 1, last_line="ModuleNotFoundError: No module named 'timm'")
    assert verdict.reason.endswith(
        "exit code 1 before the first step: ModuleNotFoundError: No module named 'timm'"
    )


def test_the_same_failure_three_times_in_a_row_is_the_last() -> None:
    again = {"error": "ValueError: no image", "step": 7, "saved_step": 4}
    first, second, third = verdicts([again, again, again])
    assert [first.action, second.action] == ["requeue", "requeue"]
    assert str(third) == (
        "give up: failed 3 times in a row in the same way: "
        "rank 0 on n1 ended with exit code 1 after step 7: ValueError: no image"
    )


def test_numbers_in_the_error_do_not_make_it_another() -> None:
    said = [f"RuntimeError: process {pid} at 0x7f{pid:x} is gone" for pid in (4711, 812, 90210)]
    assert verdicts([{"error": line, "step": 7} for line in said])[-1].action == "give_up"


@pytest.mark.parametrize(
    "other",
    [{"error": "ValueError: no image", "step": 8}, {"error": "OSError: no room", "step": 7}],
    ids=["a later step", "another error"],
)
def test_a_different_failure_in_between_begins_the_count_anew(other: dict[str, Any]) -> None:
    same = {"error": "ValueError: no image", "step": 7}
    given = verdicts([same, same, other, same, same])
    assert [verdict.action for verdict in given] == ["requeue"] * 5


def test_another_exit_code_is_another_failure() -> None:
    same: dict[str, Any] = {"error": "gone", "step": 7}
    history = tuple(verdicts([same, same]))
    assert verdict_on(3, 69, history=history, **same).action == "requeue"


def test_a_stop_in_between_ends_a_row_of_failures() -> None:
    same = {"error": "ValueError: no image", "step": 7}
    two = tuple(verdicts([same, same]))
    stopped = verdict_on(75, 75, history=two, saved_step=4)
    assert verdict_on(1, 69, history=(*two, stopped), **same).action == "requeue"


@pytest.mark.parametrize(
    ("restart", "action"), [(0, "requeue"), (1, "requeue"), (2, "give_up"), (3, "give_up")]
)
@pytest.mark.parametrize("codes", [(75, 75), (1, 69)])
def test_a_job_is_restarted_as_often_as_the_budget_allows(
    codes: tuple[int, ...], restart: int, action: str
) -> None:
    verdict = verdict_on(*codes, restart=restart, policy=RequeueConfig(budget=2))
    assert verdict.action == action


def test_the_end_of_the_budget_says_how_the_last_start_ended() -> None:
    verdict = verdict_on(75, 75, restart=20, saved_step=400)
    assert str(verdict) == (
        "give up: it was restarted 20 times, all that requeue.budget allows; stopped, saved up to step 400"
    )


def test_a_budget_of_0_lets_nothing_come_back() -> None:
    assert verdict_on(69, 70, policy=RequeueConfig(budget=0)).exclude == ()
    assert verdict_on(69, 70, policy=RequeueConfig(budget=0)).action == "give_up"


def test_a_finished_run_needs_no_budget() -> None:
    assert verdict_on(0, 0, restart=20, policy=RequeueConfig(budget=2)).action == "finished"


@pytest.mark.parametrize(
    ("codes", "bad"),
    [
        ((69, 70, 69, 69), ("n2",)),
        ((69, 69, KILLED, 69), ("n3",)),
        ((69, 69, 139, 134), ("n3", "n4")),
        ((69, None, 69, 69), ("n2",)),
        ((1, 69, 69, None), ()),
        ((1, 69, 69, 69), ()),
        ((None, None, None, None), ()),
        ((KILLED, KILLED, KILLED, KILLED), ()),
        ((70,), ("n1",)),
        ((None,), ()),
    ],
    ids=[
        "hung",
        "killed",
        "crashed",
        "vanished",
        "ended because another failed",
        "an exception",
        "no word from anybody",
        "all at once",
        "hung alone",
        "no word from the only one",
    ],
)
def test_nodes_to_blame_are_left_out(codes: tuple[int | None, ...], bad: tuple[str, ...]) -> None:
    verdict = verdict_on(*codes)
    assert (verdict.action, verdict.exclude) == ("requeue", bad)


def test_a_vanished_rank_is_looked_for_on_its_node_where_several_share_one() -> None:
    verdict = verdict_on(69, 69, None, None, 69, 69, 69, 69, per_node=2)
    assert verdict.exclude == ("n2",)
    assert verdict.reason.startswith("rank 2 on n2 ended without a word before the first step")


def test_no_node_is_left_out_where_the_cluster_file_says_so() -> None:
    assert verdict_on(69, 70, policy=RequeueConfig(exclude_bad_nodes=False)).exclude == ()


def test_with_other_ranks_saved_a_rank_without_a_word_is_no_reason_to_blame_its_node() -> None:
    assert verdict_on(75, None).exclude == ()


@pytest.mark.parametrize("slurm", ["running", "time limit"])
def test_every_failure_but_a_mistake_is_worth_a_second_start(slurm: SlurmSays) -> None:
    for code in (1, 3, 69, 70, 134, 137, 139, 255):
        assert verdict_on(code, None, slurm=slurm).action == "requeue", code
