"""A sweep, a search with two ranks per trial, and a pipeline on a real SLURM, submitted side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.events import read_events
from launch.many.group import PARENT_FILE
from launch.submission.record import read_submission
from tests.support.slurm import SlurmCluster, missing_for_slurm, slurm_cluster
from tests.support.tracked_run import wait_for

ROOT = Path(__file__).resolve().parents[3]
REASON = missing_for_slurm()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
TEACHER, STUDENT = "configs/smoke/pretrain_vit.yaml", "configs/smoke/finetune_student.yaml"
TINY = {"train.log_every": 1, "data.val": None, "tracking.uri": "off", "train.checkpoint_every": "1 epoch"}
FEW = {**TINY, "train.duration": "2 steps", "schedule.warmup": "0 steps"}
PATHS = "configs/smoke/search.yaml"
NO_LONGER = (
    "train.duration=4 steps",
    "train.evaluate_every=4 steps",
    "data.held_out=0.05",
    "tracking.uri=off",
)
LIMIT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cluster, and the folder that things were submitted from."""

    cluster: SlurmCluster
    folder: Path

    def launch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launch.cli", "launch", *arguments],
            cwd=self.folder,
            env={
                **self.cluster.environment,
                "PYTHONPATH": str(ROOT),
                "MIRADA_CACHE": os.environ["MIRADA_CACHE"],
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def submit(self, command: str, name: str, *overrides: str, **content: Any) -> None:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        done = self.launch(command, str(path), *overrides, "--cluster", "cluster.yaml")
        assert done.returncode == 0, done.stdout + done.stderr

    def wait(self, name: str) -> tuple[str, ...]:
        """Waits for the end of all jobs of what was submitted under this name, and returns their ids."""
        submission = read_submission(self.folder / "runs" / name)
        assert submission is not None
        for job_id in submission.job_ids:
            state = self.cluster.wait_for_state(job_id, "COMPLETED", "FAILED", "CANCELLED", timeout_s=LIMIT_S)
            logs = [path.read_text() for path in (self.folder / "runs" / name).rglob(f"{job_id}*_log.out")]
            assert state["JobState"] == "COMPLETED", "\n".join(logs)
        return submission.job_ids


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("many")
    settings = {"kind": "slurm", "time": "10 min", "grace_s": 30, "environment": {"OMP_NUM_THREADS": "1"}}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(settings))
    with slurm_cluster(num_nodes=2) as cluster:
        place = Place(cluster=cluster, folder=folder)
        place.submit("pipeline", "chain", stages=chain())
        place.submit("sweep", "seeds", program="pretrain", recipe=TEACHER, **seeds())
        place.submit("sweep", "rates", "tasks_per_node=2", program="pretrain", recipe=TEACHER, **rates())
        done = place.launch(
            "search", PATHS, *NO_LONGER, "--workers", "2", "--trials", "3", "--out", "runs/paths",
            "--cluster", "cluster.yaml",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        yield place


def is_synced(run: Path) -> bool:
    command = [sys.executable, "-m", "engine.tracking.command", str(run)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def seeds() -> dict[str, Any]:
    tracked = {"tracking.uri": None, "tracking.system_metrics": False}
    return {"settings": {**FEW, **tracked}, "grid": {"train.seed": [1, 2]}}


def rates() -> dict[str, Any]:
    search = {
        "metric": "train/loss",
        "direction": "minimize",
        "trials": 2,
        "sampler": "random",
        "seed": 2,
        "prune": {"startup_trials": 1, "warmup_steps": 20},
        "space": {"optim.lr": [3e-3, 1e-9]},
    }
    return {"settings": {**TINY, "train.duration": "150 steps"}, "search": search}


def chain() -> dict[str, Any]:
    scores = ["${teacher.release}", "${student.release}", "--data", "mirada://sample/test"]
    return {
        "scores": {"program": "evaluate", "arguments": [*scores, "--json", "${scores.folder}/scores.json"]},
        "student": {
            "program": "finetune",
            "recipe": STUDENT,
            "settings": {**FEW, "teacher.checkpoint": "${teacher.release}"},
        },
        "teacher": {
            "program": "pretrain",
            "recipe": TEACHER,
            "settings": FEW,
            "cluster": {"tasks_per_node": 2},
        },
    }


def test_a_grid_is_one_array_with_a_run_folder_per_point_below_one_mlflow_parent(place: Place) -> None:
    job_ids = place.wait("seeds")
    assert {job_id.partition("_")[0] for job_id in job_ids} == {job_ids[0].partition("_")[0]}
    assert [job_id.partition("_")[2] for job_id in job_ids] == ["0", "1"]
    out = place.folder / "runs" / "seeds"
    releases = sorted(out.glob("*/release/model.safetensors"))
    assert len({release.read_bytes() for release in releases}) == 2
    seeds = {
        yaml.safe_load((path.parents[1] / "config.yaml").read_text())["train"]["seed"] for path in releases
    }
    assert seeds == {1, 2}

    from mlflow import MlflowClient

    for release in releases:  # the follower of a run goes on for a while when its job has ended
        wait_for(lambda run=release.parents[1]: is_synced(run), "all of it in MLflow")
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "mirada"]
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in runs if run not in children]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.run_name for run in children} == {"train.seed=1", "train.seed=2"}
    assert parent.data.tags["mirada.run_id"] == json.loads((out / PARENT_FILE).read_text())["run_id"]
    assert parent.info.status == "FINISHED"

    again = place.launch("sweep", "seeds.yaml", "--cluster", "cluster.yaml")
    assert "nothing to submit, everything is finished" in again.stdout


def test_a_pipeline_runs_each_stage_when_those_it_builds_on_have_ended(place: Place) -> None:
    place.wait("chain")
    out = place.folder / "runs" / "chain"
    scores = json.loads((out / "scores" / "scores.json").read_text())
    assert [row["path"] for row in scores["rows"]] == [
        str(out / name / "release") for name in ("teacher", "student")
    ]
    assert scores["num_images"] == 1000
    ended = next(
        event["time"] for event in read_events(out / "teacher" / "events.jsonl") if event["kind"] == "release"
    )
    student = next(event for event in read_events(out / "student" / "events.jsonl") if event["kind"] == "run")
    assert student["time"] > ended
    assert student["config"]["teacher.checkpoint"] == str(out / "teacher" / "release")
    teacher = next(event for event in read_events(out / "teacher" / "events.jsonl") if event["kind"] == "run")
    assert (teacher["world_size"], student["world_size"]) == (2, 1)


def test_an_evaluation_is_a_job_of_its_own_with_the_scores_that_the_pipeline_has(place: Place) -> None:
    place.wait("chain")
    chain = place.folder / "runs" / "chain"
    told = place.launch(
        "evaluate", str(chain / "teacher"), "--cluster", "cluster.yaml", "cpus_per_task=2", "--out", "runs/again",
        "--data", "mirada://sample/test", "--json", "again.json",
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    (job_id,) = place.wait("again")
    assert place.cluster.job(job_id)["CPUs/Task"] == "2"
    row, *_ = json.loads((chain / "scores" / "scores.json").read_text())["rows"]
    (again,) = json.loads((place.folder / "again.json").read_text())["rows"]
    assert {key: again[key] for key in ("top1", "top5", "ece", "flops")} == {
        key: row[key] for key in ("top1", "top5", "ece", "flops")
    }


def test_a_search_stops_the_trial_that_is_worse_at_the_same_step(place: Place) -> None:
    place.wait("rates")
    out = place.folder / "runs" / "rates"
    good, bad = json.loads((out / "trials.json").read_text())
    assert (good["settings"], bad["settings"]) == ({"optim.lr": 3e-3}, {"optim.lr": 1e-9})
    assert (good["state"], bad["state"]) == ("complete", "pruned")
    kinds = {
        name: [e["kind"] for e in read_events(out / "trials" / name / "events.jsonl")]
        for name in ("0000", "0001")
    }
    assert "release" in kinds["0000"] and "stopped" not in kinds["0000"]
    assert kinds["0001"][-1] == "stopped" and "release" not in kinds["0001"]
    losses = [e for e in read_events(out / "trials" / "0000" / "events.jsonl") if e["kind"] == "metrics"]
    assert good["value"] == pytest.approx(losses[-1]["values"]["train/loss"])


def test_the_networks_of_a_supernet_are_scored_by_an_array_that_waits_for_it(place: Place) -> None:
    job_ids = place.wait("paths")
    assert [job_id.partition("_")[2] for job_id in job_ids] == ["0", "1"]
    out = place.folder / "runs" / "paths"
    rows = json.loads((out / "trials.json").read_text())
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert len({json.dumps(row["settings"]) for row in rows}) == 3
    best = yaml.safe_load((out / "best.yaml").read_text())
    assert "search" not in best["model"].get("attention", {})
    again = place.launch(
        "search", PATHS, *NO_LONGER, "--workers", "2", "--out", "runs/paths", "--cluster", "cluster.yaml", "--dry-run"
    )  # fmt: skip
    assert "the supernet in" in again.stdout and "is trained already" in again.stdout
    other = place.launch(
        "search", PATHS, *NO_LONGER, "--out", "other", "--cluster", "cluster.yaml", "--dry-run"
    )
    assert "#SBATCH --dependency=afterok:supernet\n" in other.stdout
    assert not (place.folder / "other").exists()


def test_a_stage_that_slurm_refuses_leaves_none_in_the_queue(place: Place) -> None:
    stages = chain()
    stages["student"]["cluster"] = {"partition": "nowhere"}
    (place.folder / "refused.yaml").write_text(yaml.safe_dump({"stages": stages}))
    told = place.launch("pipeline", "refused.yaml", "--cluster", "cluster.yaml")
    assert told.returncode == 2
    assert "stage student:" in told.stderr and "nowhere" in told.stderr
    assert "no stage is left in the queue" in told.stderr
    assert "refused-teacher" not in place.cluster.run("squeue", "-h", "-o", "%j %T", "-t", "PENDING,RUNNING")
    assert read_submission(place.folder / "runs" / "refused" / "student") is None


def test_a_dry_run_shows_the_scripts_with_their_dependencies(place: Place) -> None:
    shown = place.launch("pipeline", "chain.yaml", "--cluster", "cluster.yaml", "--out", "other", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "#SBATCH --dependency=afterok:teacher\n" in shown.stdout
    assert "#SBATCH --dependency=afterok:teacher:student\n" in shown.stdout
    shown = place.launch(
        "sweep",
        "seeds.yaml",
        "--cluster",
        "cluster.yaml",
        "--out",
        "other",
        "--dry-run",
        "--max-parallel",
        "1",
    )
    assert "#SBATCH --array=0-1%1\n" in shown.stdout
    assert not (place.folder / "other").exists()
