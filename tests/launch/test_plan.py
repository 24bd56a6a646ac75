"""`mirada plan` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.estimates import Estimate, find_estimate
from launch.submission.request import load_recipe

ROOT = Path(__file__).resolve().parents[2]
IMAGENET = ("configs/pretrain/imagenet_vit_b16.yaml", "--samples", "1281167")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates are kept in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "plan", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_a_run_that_fits_is_planned_without_data_and_without_a_gpu() -> None:
    result = plan(*IMAGENET, "--nodes", "2", "--gpus-per-node", "8", "--gpu", "h100", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["num_ranks"], found["micro_batch"], found["accumulation"]) == (16, 64, 1)
    assert found["timetable"]["total_steps"] == 300 * 1251
    assert found["workload"]["forward_flops"] == pytest.approx(2 * 17.6e9, rel=0.01)
    assert found["memory"]["state"]["parameters"] == pytest.approx(4 * 86.6e6, rel=0.01)
    # 300 epochs x 105 GFLOPs on 16 x 989 TFLOP/s at 40 %
    assert found["hours"] == pytest.approx(300 * 1251 * 1024 * 105.2e9 / (16 * 989e12 * 0.4) / 3600, rel=0.01)
    assert 3 < found["memory_peak"] / 2**30 < 10
    assert found["problems"] == []
    digest = load_recipe("pretrain", ROOT / IMAGENET[0]).digest
    assert find_estimate(digest, 16) == Estimate(hours=found["hours"], num_ranks=16)  # for `mirada launch`


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_refused_with_what_would() -> None:
    result = plan(*IMAGENET, "train.precision=fp16", "--gpus-per-node=4", "--gpu=t4", "--hours=20")
    assert result.returncode == 2
    assert "memory per GPU" in result.stdout
    assert "error: memory: a GPU has to hold" in result.stderr
    assert "train.activation_checkpointing=true" in result.stderr
    assert "error: time: " in result.stderr
    assert "--nodes" in result.stderr


@pytest.mark.slow
def test_a_batch_that_the_ranks_cannot_share_is_refused_before_anything_is_built() -> None:
    result = plan(*IMAGENET, "--nodes", "3", "--gpus-per-node", "8")
    assert result.returncode == 2
    assert "train.global_batch is 1024, which 24 ranks cannot share equally" in result.stderr
    assert "use a multiple of" in result.stderr


@pytest.mark.slow
def test_a_student_is_planned_from_its_index_and_told_that_its_teacher_is_missing() -> None:
    result = plan("configs/finetune/demo_student.yaml", "teacher.checkpoint=/nowhere/release")
    assert result.returncode == 0, result.stderr
    assert "6,000 samples in" in result.stdout
    assert "without the teacher, which is not there yet" in result.stdout
    assert "no time without --gpu" in result.stdout


def test_a_program_that_there_is_not_is_refused() -> None:
    result = plan("x.yaml", "--program", "train")
    assert result.returncode == 2
    assert "no program 'train'; allowed are 'pretrain' and 'finetune'" in result.stderr
