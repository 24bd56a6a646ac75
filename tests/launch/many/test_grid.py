"""Grids become points, and points become overrides that are read back as the same values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.base import ConfigError
from configs.load import load_config
from launch.many.config import SweepConfig
from launch.many.grid import config_digest, grid_points, overrides_of
from launch.submission.request import load_recipe

RECIPE = "configs/smoke/pretrain_vit.yaml"


def sweep(tmp_path: Path, **fields: object) -> SweepConfig:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"program": "pretrain", "recipe": RECIPE, **fields}))
    return load_config(SweepConfig, path).config


def test_every_combination_is_a_point_and_the_last_key_varies_fastest(tmp_path: Path) -> None:
    config = sweep(tmp_path, grid={"optim.lr": [0.1, 0.2], "train.seed": [0, 1, 2]})
    labels = [point.label for point in grid_points(config)]
    assert labels == [f"optim.lr={lr} train.seed={seed}" for lr in (0.1, 0.2) for seed in (0, 1, 2)]


def test_keys_in_one_line_vary_together(tmp_path: Path) -> None:
    grid = {"optim.lr, train.global_batch": [[0.1, 64], [0.2, 128]], "train.seed": [7]}
    points = [dict(point.settings) for point in grid_points(sweep(tmp_path, grid=grid))]
    assert points == [
        {"optim.lr": 0.1, "train.global_batch": 64, "train.seed": 7},
        {"optim.lr": 0.2, "train.global_batch": 128, "train.seed": 7},
    ]


def test_an_empty_grid_is_the_recipe_itself(tmp_path: Path) -> None:
    (point,) = grid_points(sweep(tmp_path, grid={}))
    assert (point.label, dict(point.settings)) == ("the recipe itself", {})


def test_every_malformed_line_is_named_at_once(tmp_path: Path) -> None:
    config = sweep(tmp_path, grid={"optim.lr": [], "train.seed, train.ema": [[1, 0.9], 2]})
    with pytest.raises(ConfigError) as raised:
        grid_points(config)
    assert "grid.optim.lr: no values; list at least one" in str(raised.value)
    assert "grid.train.seed, train.ema: 2 is not a list of 2 values" in str(raised.value)


def test_a_repeated_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"points twice: train.seed=1; take the repeated values out"):
        grid_points(sweep(tmp_path, grid={"train.seed": [1, 2, 1]}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "give either 'grid' (every combination) or 'search'"),
        ({"grid": {"optim.lr": [1]}, "settings": {"optim.lr": 2}}, "optim.lr: set twice"),
        ({"grid": {"a": [1], "a, b": [[1, 2]]}}, "a: set twice"),
        (
            {"search": {"trials": 2, "space": {"optim.lr": {"low": 1, "high": 0.1}}}},
            "low 1 is not below high 0.1",
        ),
        ({"search": {"trials": 2, "space": {"optim.lr": {"low": 0, "high": 1, "log": True}}}}, "low above 0"),
        ({"search": {"trials": 2, "space": {"a, b": [[1, 2]]}}}, "a search varies each key by itself"),
        ({"search": {"trials": 0, "space": {"a": [1]}}}, "greater than or equal to 1"),
        ({"grids": {}}, "no such key; did you mean 'grid'?"),
    ],
)
def test_a_sweep_that_means_nothing_is_refused(tmp_path: Path, fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        sweep(tmp_path, **fields)
    assert said in str(raised.value)


def test_values_of_any_kind_come_back_as_they_were() -> None:
    settings = {
        "optim.lr": 3e-4,
        "optim.betas": [0.9, 0.99],
        "model.args": {"depth": 3, "global_pool": "avg"},
        "train.duration": "90 epochs",
        "train.ema": None,
        "train.compile": True,
        "data.train": "/data/a: b/train",
        "tracking.run_name": "0003 optim.lr=1e-3",
        "tracking.experiment": "true",
    }
    config = load_recipe("pretrain", RECIPE, overrides_of(settings)).config
    assert (config.optim.lr, config.optim.betas) == (3e-4, (0.9, 0.99))
    assert config.model.args["depth"] == 3 and config.model.args["global_pool"] == "avg"
    assert str(config.train.duration) == "90 epochs"
    assert config.train.ema is None and config.train.compile is True
    assert config.data.train == "/data/a: b/train"
    assert (config.tracking.run_name, config.tracking.experiment) == ("0003 optim.lr=1e-3", "true")


def test_the_digest_of_a_config_follows_the_run_and_not_where_it_is_shown() -> None:
    def digest(*overrides: str) -> str:
        return config_digest(load_recipe("pretrain", RECIPE, overrides).config.model_dump(mode="json"))

    assert digest("tracking.parent=/x", "tracking.run_name=y") == digest()
    assert digest("train.seed=1") != digest()
    assert digest("optim.lr=0.001") == digest("optim.lr=1e-3")
