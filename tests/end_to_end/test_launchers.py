"""The same program trains under torchrun and under srun, without a change to recipe or code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import packaged_root
from engine.events import read_events
from tests.support.slurm import missing_for_slurm, slurm_cluster

pytestmark = pytest.mark.slow

RECIPE = ("configs/smoke/pretrain_vit.yaml", "train.duration=20 steps", "tracking.uri=off")


def test_torchrun_gives_the_ranks_and_the_command_starts_none(tmp_path: Path) -> None:
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(packaged_root()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "-m", "launch.cli", "pretrain", *RECIPE, "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert_two_ranks_finished(out)


@pytest.mark.slurm
@pytest.mark.skipif(bool(missing_for_slurm()), reason=f"needs a real SLURM: {missing_for_slurm()}")
def test_srun_over_two_nodes_gives_the_ranks_and_the_command_starts_none(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with slurm_cluster(num_nodes=2) as cluster:
        cluster.run(
            "srun", "-N2", "-n2", sys.executable, "-m", "launch.cli", "pretrain", *RECIPE, "--out", str(out),
            timeout_s=600, PYTHONPATH=str(packaged_root()), OMP_NUM_THREADS="1",
        )  # fmt: skip
    assert_two_ranks_finished(out)


def assert_two_ranks_finished(out: Path) -> None:
    events = list(read_events(out / "events.jsonl"))
    assert [event["world_size"] for event in events if event["kind"] == "run"] == [2]
    assert [event["step"] for event in events if event["kind"] == "finished"] == [20]
    assert (out / "release" / "model.safetensors").is_file()
