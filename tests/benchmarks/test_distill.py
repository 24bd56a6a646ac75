"""benchmarks.distill: every row is a recipe that loads, and the table's numbers are those of their definitions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.distill import FRACTIONS, RECIPE, ROWS, Job, main
from benchmarks.distill_table import errors_saved, half_interval, table_rows, write_table
from benchmarks.tables import render
from configs.base import ConfigError
from configs.load import load_config
from finetune.config import FinetuneConfig


@pytest.mark.parametrize(
    ("row", "losses"),
    [
        ("none", set()),
        ("logits", {"logits"}),
        ("attention", {"attention"}),
        ("both", {"logits", "attention"}),
        ("features", {"logits", "attention", "features"}),
    ],
)
def test_each_row_has_the_losses_of_its_name_and_all_else_alike(row: str, losses: set[str]) -> None:
    job = Job(row=row, fraction=0.1, seed=3, teacher="t")
    config = load_config(FinetuneConfig, RECIPE, job.overrides).config
    assert config.teacher is not None and set(config.teacher.losses) == losses
    assert config.data.unlabelled == ("drop" if row == "none" else "keep")
    plain = load_config(FinetuneConfig, RECIPE).config
    assert (config.model, config.optim, config.schedule) == (plain.model, plain.optim, plain.schedule)
    assert (
        config.train == plain.train.model_copy(update={"seed": 3}) and config.train.duration.unit == "steps"
    )


def run_of(row: str, seed: int, top1: float, fraction: float = 1.0, step_s: float = 0.1) -> dict[str, Any]:
    return {
        "row": row,
        "fraction": fraction,
        "seed": seed,
        "top1": top1,
        "step_s": step_s,
        "num_images": 10_000,
        "steps": 10,
        "parameters": 1000,
        "machine": {},
        "versions": {},
        "correlation_before": 0.1,
        "correlation_after": 0.2 * (1 + seed),
    }


def test_the_interval_is_students() -> None:
    values = [90.0, 91.5, 90.7, 92.0, 89.9]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert half_interval(values) == pytest.approx((high - low) / 2)
    assert half_interval([90.0]) is None and half_interval([]) is None


def test_errors_are_saved_seed_by_seed() -> None:
    baseline = [run_of("none", 0, 90.0), run_of("none", 1, 80.0)]
    taught = [run_of("both", 0, 92.0), run_of("both", 1, 85.0), run_of("both", 2, 99.0)]
    assert errors_saved(taught, baseline) == pytest.approx([20.0, 25.0])


def test_a_row_of_the_table_sums_up_its_seeds() -> None:
    runs = [run_of("both", 0, 92.0, step_s=0.2), run_of("both", 1, 94.0, step_s=0.2)]
    runs += [run_of("none", 0, 90.0), run_of("none", 1, 90.0), run_of("logits", 0, 50.0, fraction=0.1)]
    first, second, third = table_rows(runs)
    assert (first["name"], second["name"], third["name"]) == ("no teacher", "logits + attention", "logits")
    assert first["saved"] is None and second["saved"] == pytest.approx(30.0)
    assert second["top1"] == 93.0 and second["cost"] == pytest.approx(2.0) and third["cost"] is None
    assert second["correlation"] == "0.10 -> 0.30" and second["pointing"] is None


def test_a_table_is_made_from_the_files_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no result"):
        write_table(tmp_path / "runs", tmp_path / "out.json")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_text(json.dumps(run_of("none", 0, 90.0)))
    write_table(tmp_path / "runs", tmp_path / "out.json")
    table = render(tmp_path / "out.json")
    assert "| 100% | no teacher | 1 | 90.00 | - | - | - | 0.10 -> 0.20 | - | 1.00 |" in table
    assert "10,000 test images, each once; 10 steps" in table


def test_names_of_jobs_differ() -> None:
    jobs = [Job(row=r, fraction=f, seed=s, teacher="t") for r in ROWS for f in FRACTIONS for s in (0, 1)]
    assert len({job.name for job in jobs}) == len(jobs)


def test_a_result_of_other_settings_or_of_another_teacher_is_not_kept(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text("{}")
    (teacher / "model.safetensors").write_text("weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:16]
    job = Job(row="both", fraction=1.0, seed=0, teacher=str(teacher))
    command = ["run", "--teacher", str(teacher), "--rows", "both", "--fractions", "1", "--seeds", "0"]
    command += ["--results", str(tmp_path)]
    result = tmp_path / f"{job.name}.json"
    result.write_text(json.dumps({"settings": job.settings_of_run, "teacher": digest}))
    assert main(command) == 0
    with pytest.raises(ConfigError, match="made with other settings or by another teacher"):
        main([*command, "--set", "optim.lr=0.1"])
    (teacher / "model.safetensors").write_text("others")
    with pytest.raises(ConfigError, match="made with other settings or by another teacher"):
        main(command)
