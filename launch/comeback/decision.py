"""decide: what becomes of a job whose ranks have ended; pure, every input is in the Situation.

ends of the ranks, what SLURM says, progress, earlier verdicts -> finished | requeue | leave | stop | give up
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from configs.cluster import RequeueConfig
from configs.exit_code import INTERRUPTED, USAGE
from launch.comeback.attempts import RankEnd
from launch.comeback.verdict import Failure, Verdict
from launch.supervise import STOPPED

LOST = os.EX_UNAVAILABLE
"""Exit code of a rank that ended because another was lost."""
HUNG = os.EX_SOFTWARE
"""Exit code of a rank that made no progress."""
_KILLED = 128
_ASKED = frozenset({STOPPED, *(_KILLED + n for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))})
"""What a rank that was asked to stop ends with: saved, or so early in its start that there was nothing to save."""

SlurmSays = Literal["running", "requeueing", "time limit", "ending"]
"""Of the job, when its ranks have ended: as usual; comes back by itself; over its limit; cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A start of a job that is over."""

    ends: tuple[RankEnd, ...]
    num_ranks: int
    nodes: tuple[str, ...]
    """Of this start, in the order of their ranks, as many on each."""
    restart: int = 0
    """How often the job had been started before."""
    slurm: SlurmSays = "running"
    is_cancelled: bool = False
    """The user asked for the end (`mirada cancel`)."""
    step: int | None = None
    """Steps done."""
    saved_step: int | None = None
    """Of the newest checkpoint."""
    error: str = ""
    """What the event log gives as the reason of its end."""
    history: tuple[Verdict, ...] = ()


def decide(situation: Situation, policy: RequeueConfig, *, now: float) -> Verdict:
    """The verdict on this start. A failure is tried again too, unless it is a mistake, or always the same."""
    codes = {end.code for end in situation.ends}
    verdict = Verdict(
        action="requeue",
        reason="",
        failure=_failure(situation),
        saved_step=situation.saved_step,
        time=now,
    )
    if codes == {0} and len(situation.ends) == situation.num_ranks:
        return replace(verdict, action="finished", reason="finished")
    if situation.is_cancelled or situation.slurm == "ending":
        return replace(verdict, action="stop", reason="cancelled", failure=None)
    if situation.slurm == "requeueing":
        return replace(verdict, action="leave", reason="SLURM starts it again by itself", failure=None)
    if INTERRUPTED in codes:
        return replace(verdict, action="stop", reason="interrupted", failure=None)
    if verdict.failure is None or situation.slurm == "time limit":
        return _come_back(replace(verdict, failure=None, reason=_stop_reason(situation)), situation, policy)
    if verdict.failure.code == USAGE:
        mistake = verdict.failure.line.removeprefix("error: ") or str(verdict.failure)
        return replace(verdict, action="give_up", reason=f"a mistake to correct: {mistake}")
    times = 1 + _count_same(verdict.failure, situation.history)
    if times >= policy.same_failure:
        reason = f"failed {times} times in a row in the same way: {verdict.failure}"
        return replace(verdict, action="give_up", reason=reason)
    exclude = tuple(_suspects(situation)) if policy.exclude_bad_nodes else ()
    return _come_back(replace(verdict, reason=str(verdict.failure), exclude=exclude), situation, policy)


def _come_back(verdict: Verdict, situation: Situation, policy: RequeueConfig) -> Verdict:
    """Unless it has often enough."""
    if situation.restart < policy.budget:
        return verdict
    reason = f"it was restarted {situation.restart} times, all that requeue.budget allows; {verdict.reason}"
    return replace(verdict, action="give_up", reason=reason, exclude=())


def _stop_reason(situation: Situation) -> str:
    if situation.slurm == "time limit":
        return "over its time limit"
    if situation.saved_step is None:
        return "stopped before anything was saved"
    return f"stopped, saved up to step {situation.saved_step}"


def _failure(situation: Situation) -> Failure | None:
    """The end that made the others end; None when all ranks finished or were asked to stop."""
    ends = situation.ends
    own = [end for end in ends if end.code not in (0, LOST) and end.code not in _ASKED]
    lost = [end for end in ends if end.code == LOST]
    missing = sorted(set(range(situation.num_ranks)) - {end.rank for end in ends})
    if own:
        first = min(own, key=lambda end: (end.time, end.rank))
        code, rank, node, line = first.code, first.rank, first.node, situation.error or first.last_line
    elif missing:
        code, rank, node = None, missing[0], _node_of(missing[0], situation)
        line = situation.error or (lost[0].last_line if lost else "")
    elif lost:
        code, rank, node, line = LOST, lost[0].rank, lost[0].node, situation.error or lost[0].last_line
    else:
        return None
    return Failure(code=code, rank=rank, node=node, step=situation.step, line=line)


def _suspects(situation: Situation) -> Iterator[str]:
    """Nodes where a rank hung, was killed or vanished. An exception is a node's fault too seldom to give it up."""
    told = {end.rank: end for end in situation.ends}
    # Where a rank failed by itself, those without a word were ended because of it.
    one_failed = not told or any(end.code not in (0, LOST) for end in situation.ends)
    bad = []
    for rank in range(situation.num_ranks):
        end = told.get(rank)
        if end is None:
            bad += [] if one_failed else [_node_of(rank, situation)]
        elif end.code == HUNG or (end.code > _KILLED and end.code not in (*_ASKED, INTERRUPTED)):
            bad.append(end.node)
    bad = list(dict.fromkeys(bad))
    if len(bad) < len(situation.nodes) or len(bad) == 1:  # several that fail together are not to blame each
        yield from bad


def _node_of(rank: int, situation: Situation) -> str:
    if not situation.nodes:
        return ""
    return situation.nodes[rank * len(situation.nodes) // situation.num_ranks]


def _count_same(failure: Failure, history: Sequence[Verdict]) -> int:
    """How many of the last verdicts were on the same failure."""
    times = 0
    for verdict in reversed(history):
        if not failure.is_like(verdict.failure):
            break
        times += 1
    return times
