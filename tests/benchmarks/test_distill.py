"""benchmarks.distill: every row is a recipe that loads, and the table's numbers are those of their definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.distill import LABELS, RECIPE, ROWS, distillation, main
from benchmarks.distill_table import table_rows, write_table
from benchmarks.seeded_runs import read_results
from benchmarks.tables import render
from configs.base import ConfigError
from configs.load import load_config
from finetune.config import FinetuneConfig


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


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
def test_each_row_has_the_losses_of_its_name_and_all_else_alike(
    teacher: Path, row: str, losses: set[str]
) -> None:
    run = distillation(row=row, labels="10", seed=3, teacher=str(teacher))
    config = load_config(FinetuneConfig, RECIPE, run.overrides).config
    assert config.teacher is not None and set(config.teacher.losses) == losses
    assert config.data.unlabelled == ("drop" if row == "none" else "keep")
    plain = load_config(FinetuneConfig, RECIPE).config
    assert (config.model, config.optim, config.schedule) == (plain.model, plain.optim, plain.schedule)
    fixed = {name: getattr(config.train, name) for name in ("seed", "duration", "evaluate_every")}
    assert config.train == plain.train.model_copy(update=fixed) and fixed["seed"] == 3
    assert str(config.train.duration) == f"{LABELS['10'].steps} steps"


def test_where_there_are_no_other_images_the_teacher_speaks_of_none(teacher: Path) -> None:
    run = distillation(row="both", labels="1-alone", seed=0, teacher=str(teacher))
    config = load_config(FinetuneConfig, RECIPE, run.overrides).config
    assert (config.data.label_fraction, config.data.unlabelled) == (0.01, "drop")


def run_of(row: str, seed: int, top1: float, labels: str = "all", step_s: float = 0.1) -> dict[str, Any]:
    return {
        "row": row,
        "labels": labels,
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


def test_a_row_of_the_table_sums_up_its_seeds() -> None:
    runs = [run_of("both", 0, 92.0, step_s=0.2), run_of("both", 1, 94.0, step_s=0.2)]
    runs += [run_of("none", 0, 90.0), run_of("none", 1, 90.0), run_of("logits", 0, 50.0, labels="10")]
    first, second, third = table_rows(runs)
    assert (first["name"], second["name"], third["name"]) == ("no teacher", "logits + attention", "logits")
    assert first["saved"] is None and second["saved"] == pytest.approx(30.0)
    assert second["top1"] == 93.0 and second["cost"] == pytest.approx(2.0) and third["cost"] is None
    assert second["correlation"] == "0.10 -> 0.30" and second["pointing"] is None
    assert first["gained"] is second["gained"] is None  # no run with logits alone has these labels


def test_what_attention_adds_to_logits_is_taken_seed_by_seed() -> None:
    runs = [run_of("both", seed, top1) for seed, top1 in enumerate((91.0, 92.5, 99.0))]
    runs += [run_of("logits", 1, 92.0), run_of("logits", 0, 90.8)]
    logits, both = table_rows(runs)
    assert logits["gained"] is None and both["gained"] == pytest.approx(0.35)
    assert both["gained_interval"] == pytest.approx(12.706 * 0.15, rel=1e-4)  # t of one degree of freedom


def test_a_table_is_made_from_the_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(run_of("none", 0, 90.0)))
    write_table(read_results(tmp_path), tmp_path / "out.json")
    table = render(tmp_path / "out.json")
    assert "| all | no teacher | 10 | 1 | 90.00 | - | - | - | - | - | 0.10 -> 0.20 | - | 1.00 |" in table
    assert "10,000 test images, each once" in table
    assert "answers were kept before" in table and "`mirada teach`" in table


def test_names_of_runs_differ(teacher: Path) -> None:
    choices = [(row, labels, seed) for row in ROWS for labels in LABELS for seed in (0, 1)]
    names = {distillation(row=r, labels=f, seed=s, teacher=str(teacher)).name for r, f, s in choices}
    assert len(names) == len(choices)


def test_every_row_with_a_teacher_reads_kept_answers_and_no_result_says_where(
    teacher: Path, tmp_path: Path
) -> None:
    runs = [
        distillation(row=row, labels="all", seed=0, teacher=str(teacher), answers=tmp_path / "answers")
        for row in ROWS
    ]
    asking = {run.facts["row"] for run in runs if any("teacher.cache" in o for o in run.overrides)}
    assert asking == set(ROWS) - {"none"}
    assert not any(str(tmp_path) in setting for run in runs for setting in run.settings)


def test_a_result_by_another_teacher_is_not_kept(teacher: Path, tmp_path: Path) -> None:
    run = distillation(row="both", labels="all", seed=0, teacher=str(teacher))
    command = ["run", "--teacher", str(teacher), "--rows", "both", "--labels", "all", "--seeds", "0"]
    command += ["--results", str(tmp_path)]
    run.result(tmp_path).write_text(json.dumps({**run.facts, "config": run.digest}))
    assert main(command) == 0  # there is nothing to run, and nothing to ask the teacher
    (teacher / "model.safetensors").write_text("others")
    with pytest.raises(ConfigError, match="was made with another teacher than this run would be"):
        main(command)
