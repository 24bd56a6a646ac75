"""A save that does not end, and checkpoints damaged later: two ranks, real kills, a real full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.run_distributed import ROOT

pytestmark = pytest.mark.slow


def run(program: str, *arguments: str | Path, timeout_s: float = 600) -> str:
    """Runs a program that forks its ranks, and gives back what it printed."""
    ended = subprocess.run(
        [sys.executable, f"tests/distributed/{program}.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("victim", "among"),
    [
        (
            0,
            [
                "open /.partial-step-N/shards/weights-0.pt 1",
                "mirada.half /.partial-step-N/shards/weights-0.pt 1",
                "flush /.partial-step-N/shards/weights-0.pt 1",
                "flush /.partial-step-N/rank-00000.pt 1",
                "flush /.partial-step-N/shared.pt 1",
                "flush /.partial-step-N/.manifest.json 1",
                "os.rename /.partial-step-N/.manifest.json 1",
                "os.rename /.partial-step-N 1",
                "flush /.latest 1",
                "os.rename /.latest 1",
                "os.rename /step-N 1",
                "os.rmdir /.replaced-step-N 1",
            ],
        ),
        (1, ["open /.partial-step-N/shards/weights-1.pt 1", "flush /.partial-step-N/rank-00001.pt 1"]),
    ],
)
def test_after_a_kill_9_before_any_write_of_a_save_the_checkpoint_before_is_used_and_that_is_said(
    victim: int, among: list[str], tmp_path: Path
) -> None:
    killed_before = run("kill_in_save_program", tmp_path, str(victim)).splitlines()
    assert set(among) <= set(killed_before), killed_before


def test_all_ranks_name_a_damaged_checkpoint_and_use_the_one_before(tmp_path: Path) -> None:
    run("broken_checkpoint_program", tmp_path)


def test_when_the_disk_fills_up_during_a_save_all_ranks_go_on_and_the_next_save_succeeds(
    tmp_path: Path, small_disk: Path
) -> None:
    said = run("broken_checkpoint_program", tmp_path, small_disk)
    assert "could NOT be saved" in said and "Training goes on" in said
