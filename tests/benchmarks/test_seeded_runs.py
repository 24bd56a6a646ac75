"""Results of seeded runs: kept where they are what would be made now, and summed up as their definitions say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

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
    RUN.result(tmp_path).write_text(json.dumps({**RUN.facts, "settings": RUN.settings, "top1": 90.0}))
    assert RUN.is_in(tmp_path) and replace(RUN, local_settings=("data.train=/there",)).is_in(tmp_path)
    assert read_results(tmp_path)[0]["top1"] == 90.0


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (replace(RUN, settings=("train.seed=3", "optim.lr=1")), "another settings"),
        (replace(RUN, facts={"row": "se", "seed": 3, "teacher": "b"}), "another teacher"),
    ],
)
def test_a_result_of_other_settings_is_refused(tmp_path: Path, other: SeededRun, what: str) -> None:
    RUN.result(tmp_path).write_text(json.dumps({**RUN.facts, "settings": RUN.settings}))
    with pytest.raises(ConfigError, match=f"was made with {what} than this run would be"):
        other.is_in(tmp_path)


def test_a_folder_without_results_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no result"):
        read_results(tmp_path)
