"""Results of seeded runs: kept where they are what would be made now, and summed up as their definitions say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.attention import training
from benchmarks.attention_systems import SYSTEMS
from benchmarks.result_file import RESULTS, ROOT
from benchmarks.seeded_runs import SeededRun, errors_saved, half_interval, read_results
from configs.base import ConfigError

RUN = SeededRun(
    name="se-3",
    program="pretrain",
    recipe="configs/smoke/pretrain_vit.yaml",
    facts={"row": "se", "seed": 3},
    settings=("train.seed=3",),
    local_settings=("data.train=/here",),
)


def test_the_interval_is_students() -> None:
    values = [90.0, 91.5, 90.7, 92.0, 89.9]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert half_interval(values) == pytest.approx((high - low) / 2)
    assert half_interval([90.0]) is None and half_interval([]) is None


def test_errors_are_saved_seed_by_seed() -> None:
    baseline = [{"seed": 0, "top1": 90.0}, {"seed": 1, "top1": 80.0}]
    taught = [{"seed": 0, "top1": 92.0}, {"seed": 1, "top1": 85.0}, {"seed": 2, "top1": 99.0}]
    assert errors_saved(taught, baseline) == pytest.approx([20.0, 25.0])


def test_a_result_is_kept_whatever_its_paths_were(tmp_path: Path) -> None:
    assert not RUN.is_in(tmp_path)
    write(RUN, tmp_path, top1=90.0)
    assert RUN.is_in(tmp_path) and replace(RUN, local_settings=("data.train=/there",)).is_in(tmp_path)
    assert read_results(tmp_path)[0]["top1"] == 90.0


def write(run: SeededRun, folder: Path, **more: Any) -> None:
    content = {**run.facts, "settings": run.settings, "config": run.digest, **more}
    run.result(folder).write_text(json.dumps(content))


def test_a_result_is_kept_whatever_its_ranks_were_and_however_its_settings_were_written(
    tmp_path: Path,
) -> None:
    write(replace(RUN, settings=(*RUN.settings, "optim.lr=0.5", "train.ranks=1")), tmp_path)
    assert replace(RUN, settings=("optim.lr=5e-1", "train.seed=3")).is_in(tmp_path)


def test_a_result_of_a_recipe_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((ROOT / RUN.recipe).read_text().replace("base: ../", f"base: {ROOT}/configs/"))
    run = replace(RUN, recipe=str(recipe))
    write(run, tmp_path)
    assert run.is_in(tmp_path)
    recipe.write_text(recipe.read_text().replace("warmup: 10 steps", "warmup: 11 steps"))
    with pytest.raises(
        ConfigError, match=r"another config .*train\.seed=3; of the same settings .*recipe\.yaml has"
    ):
        run.is_in(tmp_path)


def test_the_committed_results_are_of_the_recipes_as_they_are() -> None:
    for row in SYSTEMS:
        for seed in (0, 1):
            training(row, seed).is_in(RESULTS / "attention")


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (replace(RUN, settings=("train.seed=3", "optim.lr=1")), "another config"),
        (replace(RUN, facts={"row": "se", "seed": 3, "teacher": "b"}), "another teacher"),
    ],
)
def test_a_result_of_other_settings_is_refused(tmp_path: Path, other: SeededRun, what: str) -> None:
    write(RUN, tmp_path)
    with pytest.raises(ConfigError, match=f"was made with {what} than this run would be"):
        other.is_in(tmp_path)


def test_a_folder_without_results_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no result"):
        read_results(tmp_path)
