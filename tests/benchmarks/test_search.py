"""benchmarks.search: every row is a recipe that loads, under the same limit; the table's numbers are as defined."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attention import training
from benchmarks.search import RECIPE, drawn_gates, found_gates, under_limit
from benchmarks.search_table import table_rows, write_table
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


def test_what_docs_search_says_of_the_limit_is_so(space: Space) -> None:
    none, narrow, wide, eca, cbam = range(5)
    left = space.members()
    assert (len(left), 625 - len(left)) == (176, 449) and not any(cbam in path for path in left)
    assert [{path[stage] for path in left} for stage in range(4)] == [
        *[{none, narrow, wide, eca}] * 3,
        {none, narrow, eca},
    ]
    assert [more[cbam] for more in space.more] == [154_432, 39_952, 12_676, 9_280]

    def built(path: tuple[int, ...]) -> tuple[int, ...]:
        """Narrow and wide squeeze-and-excitation are one layer in the first two stages."""
        return tuple(narrow if stage < 2 and choice == wide else choice for stage, choice in enumerate(path))

    assert len({built(path) for path in itertools.product(range(5), repeat=4)}) == 400
    assert len(set(map(built, left))) == 99


@pytest.mark.parametrize(("gate", "widths"), [
    ("{name: se, reduction: 16}", [8, 8, 8, 8]),
    ("{name: cbam, reduction: 16}", [8, 8, 8, 8]),
    ("{name: se, reduction: 4}", [8, 8, 16, 24]),
])  # fmt: skip
def test_the_hidden_widths_are_those_that_tables_and_docs_name(gate: str, widths: list[int]) -> None:
    hidden = network(loaded(f"model.attention.gates={gate}")).named_modules()
    assert [layer.out_channels for name, layer in hidden if name.endswith("fc1")] == widths


def test_networks_drawn_at_random_are_under_the_limit_and_others_for_each_seed(
    space: Space, tmp_path: Path
) -> None:
    drawn = [drawn_gates(space, seed) for seed in range(6)]
    assert len(set(drawn)) > 1 and drawn[0] == drawn_gates(space, 0)
    listed = {str(seed): [group.model_dump(mode="json") for group in drawn[seed]] for seed in (0, 1)}
    found = tmp_path / "found.json"
    found.write_text(json.dumps({"gates": listed["0"], "random": listed}))
    for row, seed in (("random", 0), ("random", 1), ("searched", 4)):
        config = loaded(*found_gates(row, seed, found))
        assert config.model.attention.gates == drawn[1 if (row, seed) == ("random", 1) else 0]
        assert count_flops(network(config), SHAPE) <= (space.max_flops or 0)
    assert found_gates("se", 0, tmp_path / "nowhere") == []
    with pytest.raises(ConfigError, match=r"python -m benchmarks.search find"):
        found_gates("searched", 0, tmp_path / "nowhere")
    with pytest.raises(
        ConfigError, match=r"has networks drawn at random for the seeds 0, 1, not for 5: leave"
    ):
        found_gates("random", 5, found)


def test_what_is_searched_is_the_network_that_the_rows_train() -> None:
    row = training("cnn", 0)
    trained = load_config(PretrainConfig, row.recipe, row.overrides).config.model
    searched = loaded().model
    assert (searched.name, searched.args) == (trained.name, trained.args)
    squeezed = training("se", 0)
    gates = load_config(PretrainConfig, squeezed.recipe, squeezed.overrides).config.model.attention.gates
    assert loaded("model.attention.gates={name: se, reduction: 16}").model.attention.gates == gates


SEARCH = {
    "found": "stage 1 none",
    "num_scored": 3,
    "num_members": 9,
    "supernet_minutes": 7.2,
    "supernet_steps": 1000,
    "held_out_top1": 88.0,
}


def run_of(row: str, seed: int, top1: float, flops: int = 1_000_000) -> dict[str, Any]:
    return {
        "row": row, "seed": seed, "top1": top1, "flops": flops, "parameters": 1000 + seed, "num_images": 10_000,
        "steps": 10, "machine": {}, "versions": {},
    }  # fmt: skip


def test_gains_are_over_the_base_network_of_the_same_seed() -> None:
    base = [run_of("cnn", 0, 90.0), run_of("cnn", 1, 80.0)]
    found = [run_of("searched", 0, 92.0), run_of("searched", 1, 85.0), run_of("searched", 2, 99.0)]
    first, second = table_rows([*found, *base])
    assert (first["name"], first["parameters"]) == ("none (base network)", "1,000-1,001")
    assert second["gain"] == pytest.approx(3.5) and second["saved"] == pytest.approx((20 + 25) / 2)
    assert (second["runs"], second["pairs"]) == (3, "2") and first["pairs"] is None


def test_each_row_is_held_against_those_above_it_by_the_seeds_that_both_have() -> None:
    runs = [run_of("cnn", seed, 80.0) for seed in range(3)] + [
        run_of("se", seed, 81.0 + seed) for seed in range(3)
    ]
    runs += [run_of("random", 1, 82.5)] + [run_of("searched", seed, 83.0) for seed in range(3)]
    base, squeezed, drawn, found = table_rows(runs)
    assert "over_se" not in squeezed and "over_random" not in drawn and "gain" not in base
    assert drawn["over_se"] == pytest.approx(0.5) and (drawn["over_se_interval"], drawn["pairs"]) == (
        None,
        "1",
    )
    assert found["over_se"] == pytest.approx(1.0) and found["over_random"] == pytest.approx(0.5)
    assert found["over_se_interval"] == pytest.approx(4.303 / 3**0.5, rel=1e-4)  # t of two degrees of freedom
    assert found["pairs"] == "1-3"


def test_the_table_is_of_the_rows_of_a_search_alone(tmp_path: Path) -> None:
    runs = [run_of("cnn", 0, 90.0), run_of("searched", 0, 91.5), run_of("vit", 0, 70.0)]
    write_table(runs, SEARCH, tmp_path / "out.json")
    table = render(tmp_path / "out.json")
    assert (
        "| searched | 1 | 1.000 | 1,000 | 91.50 | - | +1.50 | - | - | - | - | - | 1 | 15.0 |" in table
        and "70.0" not in table
    )
    assert "Found: stage 1 none; 3 of 9 networks were scored" in table
