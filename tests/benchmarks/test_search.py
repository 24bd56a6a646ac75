"""benchmarks.search: every row is a recipe that loads, under the same limit; the table's numbers are as defined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.search import RECIPE, ROWS, Job, as_overrides, drawn_gates, main, under_limit
from benchmarks.search_table import gains, table_rows, write_table
from benchmarks.tables import render
from configs.base import ConfigError
from configs.load import load_config
from launch.attention_search.space import Space
from models.build import build_model
from models.complexity import count_flops
from models.path_costs import measure_paths
from pretrain.config import PretrainConfig

SHAPE = (1, 28, 28)


def network(config: PretrainConfig) -> Any:
    return build_model(config.model, num_classes=10, in_chans=1, image_size=28)


@pytest.fixture(scope="module")
def space() -> Space:
    config = load_config(PretrainConfig, RECIPE).config
    assert config.model.attention.search is not None
    costs = measure_paths(network(config), SHAPE).as_dict()
    return under_limit(Space.of(config.model.attention.search, costs, max_flops=None))


def loaded(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, RECIPE, ["model.attention.search=null", *overrides]).config


def test_the_limit_is_what_squeeze_and_excitation_takes_everywhere(space: Space) -> None:
    everywhere = loaded("model.attention.gates={name: se, reduction: 16}")
    assert space.max_flops == count_flops(network(everywhere), SHAPE)
    assert 1 < len(space.members()) < 625


def test_networks_drawn_at_random_are_under_the_limit_and_others_for_each_seed(space: Space) -> None:
    drawn = [drawn_gates(space, seed) for seed in range(6)]
    assert len(set(drawn)) > 1 and drawn[0] == drawn_gates(space, 0)
    for gates in drawn[:2]:
        config = loaded(*as_overrides(gates))
        assert config.model.attention.gates == gates
        assert count_flops(network(config), SHAPE) <= (space.max_flops or 0)


def test_all_rows_train_alike_on_all_images() -> None:
    job = Job(row="base", seed=3, trials=5)
    config = loaded(*job.overrides)
    assert (config.data.held_out, config.train.seed, str(config.train.duration)) == (0.0, 3, "8 epochs")
    assert len({Job(row=row, seed=seed, trials=1).name for row in ROWS for seed in (0, 1)}) == 8


def run_of(row: str, seed: int, top1: float, flops: int = 1_000_000) -> dict[str, Any]:
    searched = {
        "found": "stage 1 none",
        "num_scored": 3,
        "num_members": 9,
        "search_minutes": 7.2,
        "held_out_top1": 88.0,
    }
    return {
        "row": row, "seed": seed, "top1": top1, "flops": flops, "parameters": 1000 + seed, "num_images": 10_000,
        "steps": 10, "machine": {}, "versions": {}, **(searched if row == "searched" else {}),
    }  # fmt: skip


def test_gains_are_over_the_base_network_of_the_same_seed() -> None:
    base = [run_of("base", 0, 90.0), run_of("base", 1, 80.0)]
    found = [run_of("searched", 0, 92.0), run_of("searched", 1, 85.0), run_of("searched", 2, 99.0)]
    assert gains(found, base) == pytest.approx([2.0, 5.0])
    first, second = table_rows([*found, *base])
    assert (first["name"], first["gain"], first["parameters"]) == ("none (base network)", None, "1,000-1,001")
    assert second["gain"] == pytest.approx(3.5) and second["saved"] == pytest.approx((20 + 25) / 2)


def test_a_table_is_made_from_the_files_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no result"):
        write_table(tmp_path / "runs", tmp_path / "out.json")
    (tmp_path / "runs").mkdir()
    for run in (run_of("base", 0, 90.0), run_of("searched", 0, 91.5)):
        (tmp_path / "runs" / f"{run['row']}.json").write_text(json.dumps(run))
    write_table(tmp_path / "runs", tmp_path / "out.json")
    table = render(tmp_path / "out.json")
    assert "| searched | 1 | 1.000 | 1,000 | 91.50 | - | +1.50 | - | 15.0 |" in table
    assert "Found: stage 1 none; 3 of 9 networks were scored" in table


def test_a_result_of_other_settings_is_not_kept(tmp_path: Path) -> None:
    command = ["run", "--rows", "base", "--seeds", "0", "--results", str(tmp_path)]
    (tmp_path / "base-0.json").write_text(
        json.dumps({"settings": Job(row="base", seed=0, trials=1).overrides})
    )
    assert main(command) == 0
    with pytest.raises(ConfigError, match="made with other settings"):
        main([*command, "--set", "optim.lr=0.1"])
