"""Resuming cannot be told from never having stopped: real ranks, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from engine.events import read_events
from tests.support.run_distributed import run_ranks, start_ranks
from tests.support.tiny_run import history

PROGRAM = "tests/support/tiny_run.py"

pytestmark = pytest.mark.slow


def last_step(out: Path) -> int:
    return max((event["step"] for event in read_events(out / "events.jsonl") if "step" in event), default=0)


def test_after_kill_9_of_all_ranks_the_same_command_ends_with_the_same_losses_and_weights(
    tmp_path: Path,
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_ranks([PROGRAM, str(whole), "--steps", "16"])
    killed = start_ranks([PROGRAM, str(cut), "--steps", "16", "--hang-at", "14"])
    killed.wait_until(lambda: last_step(cut) >= 9)  # a save waits for the one before: that of step 4 stands
    killed.kill()
    assert not (cut / "weights.pt").exists()
    run_ranks([PROGRAM, str(cut), "--steps", "16"])
    assert "resumed" in [event["kind"] for event in read_events(cut / "events.jsonl")]
    assert history(whole) == history(cut)
    expected, found = torch.load(whole / "weights.pt"), torch.load(cut / "weights.pt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_signal_to_one_rank_stops_all_at_one_step_and_each_stage_resumes_exactly(tmp_path: Path) -> None:
    run_ranks(["tests/distributed/resume_program.py", str(tmp_path)])


def test_when_a_rank_dies_in_a_step_the_others_end_too(tmp_path: Path) -> None:
    ranks = start_ranks([PROGRAM, str(tmp_path / "run"), "--steps", "100000"])
    ranks.wait_until(lambda: last_step(tmp_path / "run") >= 3)
    ranks.processes[1].send_signal(signal.SIGKILL)
    codes = ranks.wait(timeout_s=120)
    assert codes[0] not in (0, 75) and codes[1] == -signal.SIGKILL
