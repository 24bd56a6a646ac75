"""`mirada launch sweep` and `pipeline` as a user meets them, without SLURM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
RECIPE = "configs/smoke/pretrain_vit.yaml"
LOCAL = {"kind": "local", "tasks_per_node": 1}


def mirada(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "launch", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def write(path: Path, **content: Any) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def sweep(folder: Path, **fields: Any) -> str:
    return write(folder / "rates.yaml", program="pretrain", recipe=RECIPE, **fields)


def test_a_dry_run_shows_every_point_writes_nothing_and_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text("raise SystemExit('torch was imported')")
    file = sweep(tmp_path, grid={"optim.lr": [0.1, 0.2], "train.seed": [0, 1]})
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    before = sorted(tmp_path.rglob("*"))
    path = os.pathsep.join([str(tmp_path / "path"), str(ROOT)])
    shown = mirada("sweep", file, "--cluster", cluster, "--dry-run", folder=tmp_path, PYTHONPATH=path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"4 runs of 4 points in {tmp_path}/runs/rates\n")
    for lr in (0.1, 0.2):
        for seed in (0, 1):
            assert f"  optim.lr={lr} train.seed={seed}\n" in shown.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_the_mistakes_of_all_points_are_told_at_once_and_common_ones_once(tmp_path: Path) -> None:
    grid = {"train.global_batch": [64, 100_000, 200_000], "optim.lr": [0.1, -1]}
    file = sweep(tmp_path, settings={"data.val": "/nowhere"}, grid=grid)
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    told = mirada("sweep", file, "--cluster", cluster, folder=tmp_path)
    assert told.returncode == 2
    assert "nothing was submitted" in told.stderr
    assert "train.global_batch=64 optim.lr=-1 and 2 more: 1 mistake in" in told.stderr
    assert "greater than 0" in told.stderr

    file = sweep(tmp_path, settings={"data.val": "/nowhere"}, grid={**grid, "optim.lr": [0.1]})
    told = mirada("sweep", file, "--cluster", cluster, folder=tmp_path)
    assert told.returncode == 2
    assert told.stderr.count("data.val: no index in '/nowhere'") == 1
    assert "train.global_batch=100000 optim.lr=0.1: data.train:" in told.stderr
    assert not (tmp_path / "runs").exists()


def test_a_key_that_is_varied_cannot_be_fixed_on_the_command_line(tmp_path: Path) -> None:
    file = sweep(tmp_path, grid={"optim.lr": [0.1]})
    cluster = write(tmp_path / "debug.yaml", kind="debug")
    told = mirada("sweep", file, "optim.lr=1", "nodse=2", "--cluster", cluster, folder=tmp_path)
    assert told.returncode == 2
    assert "optim.lr is what the sweep varies: leave it out  [command line]" in told.stderr
    assert "nodse: no such key" in told.stderr and "did you mean 'nodes'?" in told.stderr
    assert "kind debug becomes the one process it runs" in told.stderr
    assert "Traceback" not in told.stderr


def test_points_that_mean_the_same_settings_are_refused(tmp_path: Path) -> None:
    file = sweep(tmp_path, grid={"optim.weight_decay": [0, 0.0, 0.5]})
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    told = mirada("sweep", file, "--cluster", cluster, folder=tmp_path)
    assert told.returncode == 2
    assert (
        "'optim.weight_decay=0' and 'optim.weight_decay=0.0' are the same run: take one of them out"
        in told.stderr
    )


def test_every_edge_of_a_search_is_checked_before_the_first_trial(tmp_path: Path) -> None:
    space = {"optim.lr": {"low": 0.0, "high": 0.1}, "optim.name": ["adamw", "adamx"]}
    file = sweep(tmp_path, search={"trials": 3, "space": space})
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    told = mirada("sweep", file, "--cluster", cluster, folder=tmp_path)
    assert told.returncode == 2
    assert "optim.lr=0.0: 1 mistake in" in told.stderr
    assert "optim.name=adamx: 1 mistake in" in told.stderr


def test_all_stages_of_a_pipeline_are_checked_before_the_first_is_submitted(tmp_path: Path) -> None:
    stages = {
        "teacher": {"program": "pretrain", "recipe": RECIPE, "settings": {"optim.lr": -1}},
        "student": {
            "program": "finetune",
            "recipe": "configs/smoke/finetune_student.yaml",
            "settings": {"teacher.checkpoint": "${teacher.release}", "data.train": "/nowhere"},
        },
        "scores": {
            "program": "evaluate",
            "arguments": ["${student.release}"],
            "cluster": {"nodes": 0},
        },
    }
    file = write(tmp_path / "chain.yaml", stages=stages)
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    told = mirada("pipeline", file, "--cluster", cluster, folder=tmp_path)
    assert told.returncode == 2
    assert "3 mistakes, nothing was submitted" in told.stderr
    assert "stages.teacher: 1 mistake in" in told.stderr
    assert "stages.student: data.train: no index in '/nowhere'" in told.stderr
    assert "nodes is 0, and a run needs at least 1" in told.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_here_the_points_run_one_after_another_and_only_what_is_missing_runs_again(tmp_path: Path) -> None:
    tiny = {
        "train.duration": "2 steps",
        "schedule.warmup": "0 steps",
        "data.val": None,
        "tracking.uri": "off",
    }
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    file = sweep(tmp_path, settings=tiny, grid={"train.seed": [0]})
    first = mirada("sweep", file, "--cluster", cluster, folder=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    (release,) = (tmp_path / "runs" / "rates").glob("*/release/model.safetensors")
    written = release.stat().st_mtime_ns

    file = sweep(tmp_path, settings=tiny, grid={"train.seed": [0, 1]})
    second = mirada("sweep", file, "--cluster", cluster, folder=tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert len(list((tmp_path / "runs" / "rates").glob("*/release/model.safetensors"))) == 2
    assert release.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("command", "file", "said"),
    [
        ("sweep", "configs/sweeps/smoke_grid.yaml", "4 runs of 4 points"),
        ("sweep", "configs/sweeps/smoke_search.yaml", "6 trials by 2 workers"),
        ("pipeline", "configs/pipelines/smoke.yaml", "3 stages"),
    ],
)
def test_the_shipped_examples_can_be_launched_from_anywhere(
    tmp_path: Path, command: str, file: str, said: str
) -> None:
    shown = mirada(command, file, "--cluster", "local", "--dry-run", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(said)


@pytest.mark.slow
def test_here_a_search_runs_its_trials_and_can_be_gone_on_with(tmp_path: Path) -> None:
    tiny = {
        "train.duration": "2 steps",
        "schedule.warmup": "0 steps",
        "data.val": None,
        "tracking.uri": "off",
    }
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    space = {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    study = {"metric": "train/loss", "direction": "minimize", "workers": 3, "space": space}
    for num_trials in (1, 2):
        file = sweep(
            tmp_path, settings={**tiny, "train.log_every": 1}, search={**study, "trials": num_trials}
        )
        done = mirada("sweep", file, "--cluster", cluster, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = json.loads((tmp_path / "runs" / "rates" / "trials.json").read_text())
        assert [row["state"] for row in rows] == ["complete"] * num_trials
        assert f"trial {num_trials - 1} (optim.lr=" in done.stdout
    assert rows[0]["settings"] != rows[1]["settings"]
    assert len(list((tmp_path / "runs" / "rates" / "trials").glob("*/release/model.safetensors"))) == 2


@pytest.mark.slow
def test_here_a_pipeline_ends_with_the_first_stage_that_fails_and_goes_on_from_there(tmp_path: Path) -> None:
    tiny = {
        "train.duration": "2 steps",
        "schedule.warmup": "0 steps",
        "data.val": None,
        "tracking.uri": "off",
    }
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    scores = [
        "${teacher.release}",
        "--data",
        "mirada://sample/test",
        "--json",
        "${scores.folder}/scores.json",
    ]
    stages: dict[str, Any] = {
        "teacher": {"program": "pretrain", "recipe": RECIPE, "settings": tiny},
        "scores": {"program": "evaluate", "arguments": [*scores, "--device", "nowhere"]},
    }
    failed = mirada(
        "pipeline", write(tmp_path / "chain.yaml", stages=stages), "--cluster", cluster, folder=tmp_path
    )
    assert failed.returncode == 2
    assert "nowhere" in failed.stderr
    release = tmp_path / "runs" / "chain" / "teacher" / "release" / "model.safetensors"
    written = release.stat().st_mtime_ns

    stages["scores"]["arguments"] = scores
    done = mirada(
        "pipeline", write(tmp_path / "chain.yaml", stages=stages), "--cluster", cluster, folder=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        json.loads((tmp_path / "runs" / "chain" / "scores" / "scores.json").read_text())["num_images"] == 1000
    )
    assert release.stat().st_mtime_ns == written

    stages["teacher"]["settings"] = {**tiny, "train.seed": 5}
    told = mirada(
        "pipeline", write(tmp_path / "chain.yaml", stages=stages), "--cluster", cluster, folder=tmp_path
    )
    assert told.returncode == 2
    assert "holds a finished run of another config: name another folder with --out" in told.stderr


def test_a_program_without_a_recipe_is_checked_before_it_is_submitted(tmp_path: Path) -> None:
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    arguments = ("runs/missing", "--data", "/nowhere", "nodse=2", "cluster.nodse=2")
    told = mirada("evaluate", *arguments[:3], "--cluster", cluster, folder=tmp_path)
    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert "2 mistakes, nothing was submitted" in told.stderr
    assert "checkpoint 1: 'runs/missing' is no release" in told.stderr
    assert "--data: no index in '/nowhere'" in told.stderr
    told = mirada("evaluate", *arguments, "--cluster", cluster, folder=tmp_path)
    assert told.returncode == 2
    assert "nodse: no such key; did you mean 'nodes'?" in told.stderr


def test_options_behind_two_dashes_are_the_programs(tmp_path: Path) -> None:
    cluster = write(tmp_path / "local.yaml", **LOCAL)
    shown = mirada(
        "attend", "--cluster", cluster, "tasks_per_node=1", "--dry-run", "--", "runs/a", "a.jpg", "--out", "a.png",
        folder=tmp_path,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "1 process(es) on this machine: attend runs/a a.jpg --out a.png\n"
    shown = mirada(
        "teach", "--cluster", cluster, "tasks_per_node=2", "--dry-run", "--", "s.yaml", "train.seed=1", "--out", "a",
        folder=tmp_path,
    )  # fmt: skip
    assert shown.stdout == "2 process(es) on this machine: teach s.yaml train.seed=1 --out a\n"
    assert not (tmp_path / "runs").exists()
