"""The same command with a cluster file of this machine runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RECIPE = "configs/smoke/pretrain_vit.yaml"
SHORT = (
    "train.duration=2 steps",
    "schedule.warmup=1 steps",
    "train.global_batch=8",
    "data.val=null",
    "data.workers=0",
    "tracking.uri=off",
)


def launch(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "launch", "pretrain", RECIPE, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_dry_run_says_what_would_start_and_writes_nothing(tmp_path: Path) -> None:
    local = launch(
        tmp_path, "--cluster", "local", "tasks_per_node=3", "train.seed=4", "--dry-run", "--out", "a"
    )
    assert local.stdout == f"3 ranks on this machine: pretrain {RECIPE} train.seed=4 --out {tmp_path}/a\n", (
        local.stderr
    )
    debug = launch(tmp_path, "--cluster", "debug", "--dry-run")
    assert debug.stdout.startswith("1 process on this machine: pretrain ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cluster", "ranks"), [("local", "2 ranks x 4 images"), ("debug", "1 rank x 8 images")]
)
def test_it_runs_to_the_end(tmp_path: Path, cluster: str, ranks: str) -> None:
    words = ["tasks_per_node=2"] if cluster == "local" else []
    result = launch(tmp_path, *SHORT, *words, "--cluster", cluster, "--out", "a")
    assert result.returncode == 0, result.stderr
    assert ranks in result.stdout + result.stderr
    assert (tmp_path / "a" / "release" / "model.safetensors").is_file()
