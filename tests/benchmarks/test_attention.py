"""benchmarks.attention: every row is a recipe that builds and differs by its system alone; the table sums up seeds."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attention import main, training
from benchmarks.attention_systems import SYSTEMS
from benchmarks.attention_table import apart, draw, table_rows
from configs.base import ConfigError
from configs.load import load_config
from models.build import build_model
from pretrain.config import PretrainConfig


def config_of(row: str) -> PretrainConfig:
    run = training(row, 3)
    return load_config(PretrainConfig, run.recipe, run.overrides).config


@pytest.mark.parametrize("row", SYSTEMS)
def test_a_row_differs_from_its_base_by_its_attention_alone(row: str) -> None:
    config, base = config_of(row), config_of(SYSTEMS[row].base or row)
    build_model(config.model, num_classes=10, in_chans=1, image_size=28)
    plain = {"attention": base.model.attention}
    assert config.model_copy(update={"model": config.model.model_copy(update=plain)}) == base
    assert SYSTEMS[row].base is None or config.model.attention != base.model.attention


def test_all_rows_have_the_same_data_and_steps() -> None:
    first, *others = map(config_of, SYSTEMS)
    assert all(
        (other.data, other.train, other.schedule) == (first.data, first.train, first.schedule)
        for other in others
    )


def result_of(row: str, seed: int, top1: float) -> dict[str, Any]:
    return {"row": row, "seed": seed, "top1": top1, "parameters": 1000, "flops": 2_500_000, "steps": 10}


def test_a_system_is_held_against_its_base_and_shown_with_what_it_costs(tmp_path: Path) -> None:
    results = [result_of("cnn", 0, 90.0), result_of("cnn", 1, 80.0)]
    results += [result_of("se", 0, 91.0), result_of("se", 1, 84.0), result_of("vit", 0, 70.0)]
    costs = {"se": {"row": "se", "train": 500.0, "infer": 2000.0, "memory": 0.5}}
    rows = table_rows(results, SYSTEMS, costs)
    assert [row["title"] for row in rows] == ["ResNet", "+ squeeze-and-excitation", "ViT"]
    base, gated, alone = rows
    assert base["saved"] is None and alone["saved"] is None and alone["interval"] is None
    assert gated["top1"] == 87.5 and gated["saved"] == pytest.approx(15.0) and gated["mflops"] == 2.5
    assert gated["train"] == 500.0 and base["train"] is None
    draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_names_beside_the_figure_stay_apart_and_in_order_and_move_no_further_than_that_takes() -> None:
    assert apart([0.5, 0.1, 0.5, 0.9, 0.5], least=0.1) == pytest.approx([0.4, 0.1, 0.5, 0.9, 0.6])
    moved = apart([0.30, 0.31, 0.20, 0.32], least=0.2)
    assert [round(b - a, 9) for a, b in pairwise(sorted(moved))] == [0.2] * 3
    assert sum(moved) == pytest.approx(1.13)  # as far up as down


def test_networks_of_which_each_seed_has_another_are_shown_by_their_mean_and_pairs_are_counted() -> None:
    drawn = [
        result_of("random", seed, 90.0) | {"parameters": 1000 + 10 * seed, "flops": seed}
        for seed in (0, 1, 2)
    ]
    base, row = table_rows([result_of("cnn", 1, 80.0), *drawn], SYSTEMS, {})
    assert (row["parameters"], row["mflops"]) == (1010, 1e-6)
    assert (row["runs"], row["pairs"], base["pairs"]) == (3, 1, None)


def test_what_a_row_lacks_is_said_before_the_first_one_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr("benchmarks.seeded_runs._measure", train)
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    with pytest.raises(ConfigError, match="not for 77"):
        main(["run", "--rows", "cnn", "random", "--seeds", "77", *folders])


def test_the_table_ends_with_the_student_of_the_distillation_on_all_labels(tmp_path: Path) -> None:
    fixed = {"num_images": 10_000, "machine": {}, "versions": {}}
    systems, students = tmp_path / "systems", tmp_path / "students"
    write_results(systems, [result_of("cnn", 0, 90.0) | fixed])
    taught = [result_of("none", 0, 91.0), result_of("both", 0, 92.8), result_of("logits", 0, 92.0)]
    few = [result_of("both", 0, 85.0) | {"labels": "10"}]
    write_results(students, [{"labels": "all"} | fixed | result for result in taught + few])
    out, figure = tmp_path / "table.json", tmp_path / "figure.png"
    folders = [
        "--results",
        str(systems),
        "--students",
        str(students),
        "--out",
        str(out),
        "--figure",
        str(figure),
    ]
    assert main(["table", *folders]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["top1"], row["saved"]) for row in rows] == [
        (90.0, None),
        (91.0, None),
        (92.8, pytest.approx(20.0)),
    ]


def write_results(folder: Path, results: list[dict[str, Any]]) -> None:
    folder.mkdir()
    for number, result in enumerate(results):
        (folder / f"{number}.json").write_text(json.dumps(result))
