"""Two real ranks of a real run, to which everything happens that a run has to survive."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.events import read_events
from engine.survival.lifeline import EXIT_LOST
from engine.survival.watchdog import EXIT_HUNG
from tests.support.run_distributed import start_ranks

pytestmark = pytest.mark.slow


def test_signals_to_one_rank_bad_batches_and_slow_ranks_and_then_a_hang_that_ends_all(tmp_path: Path) -> None:
    ranks = start_ranks(["tests/distributed/survival_program.py", str(tmp_path)])
    codes = ranks.wait()
    assert codes == [EXIT_LOST, EXIT_HUNG], "\n---\n".join(ranks.outputs)
    assert "is slow: the others wait" in ranks.outputs[0]
    hung = tmp_path / "hung"
    assert "in sleep_on_rank_1" in (hung / "logs" / "rank_1.stacks").read_text()
    assert (hung / "logs" / "rank_0.stacks").exists()
    last = list(read_events(hung / "events.jsonl"))[-1]
    assert last["kind"] == "failed" and last["step"] == 3
    assert (
        "rank 1 (host" in last["error"]
        and "hangs: no progress for 3 s after step 3, in forward" in last["error"]
    )
