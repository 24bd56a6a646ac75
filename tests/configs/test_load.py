"""Recipes become configs, and every mistake in them is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.base import ConfigError
from configs.load import find_recipe, load_config, packaged_root
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig

MINIMAL = """
data: {train: shards, channels: 1, mean: [0.2], std: [0.3]}
model: {name: vit_tiny_patch16_224}
optim: {lr: 3e-4}
train: {duration: 3 epochs, global_batch: 16}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def mistakes(path: Path, *overrides: str, schema: type = PretrainConfig) -> list[str]:
    with pytest.raises(ConfigError) as failure:
        load_config(schema, path, overrides)
    return [line.strip() for line in str(failure.value).splitlines()]


def test_exponent_without_point_is_a_number(recipe: Path) -> None:
    assert load_config(PretrainConfig, recipe).config.optim.lr == 3e-4
    assert load_config(PretrainConfig, recipe, ["optim.lr=1e-5"]).config.optim.lr == 1e-5


def test_all_mistakes_are_reported_at_once_with_path_value_origin_and_suggestion(recipe: Path) -> None:
    recipe.write_text(MINIMAL.replace("lr: 3e-4", "lr: -1").replace("name:", "nam:"))
    lines = mistakes(recipe, "zero.stage=7", "train.ranks=many")
    assert lines[0].startswith("5 mistakes in ")
    assert "optim.lr: -1 is not allowed: input should be greater than 0  [recipe.yaml]" in lines
    assert "model.nam: no such key; did you mean 'name'?  [recipe.yaml]" in lines
    assert any(line.startswith("model.name: missing; give it a value") for line in lines)
    assert "zero.stage: 7 is not allowed: input should be 0, 1, 2 or 3  [command line]" in lines
    assert sum(line.startswith("train.ranks: 'many' is not allowed") for line in lines) == 1


def test_unknown_key_without_a_near_name_lists_what_is_allowed(recipe: Path) -> None:
    assert "zero.xyzzy: no such key; allowed are stage, offload, extra  [command line]" in mistakes(
        recipe, "zero.xyzzy=1"
    )


def test_duration_says_how_to_write_it(recipe: Path) -> None:
    assert any(
        "'90 epochs', '10k steps' or '1.2M images'" in line
        for line in mistakes(recipe, "train.duration=9 parsecs")
    )


@pytest.mark.parametrize(
    ("text", "steps"),
    [("3 epochs", 30), ("1 epoch", 10), ("2k steps", 2000), ("0.5 epochs", 5), ("1.6k images", 100)],
)
def test_duration_counts_steps_in_any_unit(recipe: Path, text: str, steps: int) -> None:
    duration = load_config(PretrainConfig, recipe, [f"train.duration={text}"]).config.train.duration
    assert duration.steps(steps_per_epoch=10, global_batch=16) == steps


def test_bases_merge_mappings_replace_lists_and_later_layers_win(tmp_path: Path, recipe: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("base: recipe.yaml\ndata: {mean: [0.5]}\ntrain: {global_batch: 32}\n")
    loaded = load_config(PretrainConfig, child, ["train.global_batch=64"])
    assert loaded.config.data.mean == (0.5,)
    assert loaded.config.data.train == "shards"
    assert loaded.config.train.global_batch == 64
    assert loaded.origins["data.mean"] == "child.yaml"
    assert loaded.origins["data.std"] == "recipe.yaml"
    assert loaded.origins["train.global_batch"] == "command line"


def test_bases_in_a_circle_are_an_error_that_shows_the_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"circle: a\.yaml -> b\.yaml -> a\.yaml"):
        load_config(PretrainConfig, tmp_path / "a.yaml")


def test_annotated_config_can_be_loaded_again(tmp_path: Path, recipe: Path) -> None:
    loaded = load_config(PretrainConfig, recipe, ["model.args.depths=[1,2]", "data.val=null", "zero.stage=1"])
    again = tmp_path / "effective.yaml"
    again.write_text(loaded.annotated_yaml())
    assert load_config(PretrainConfig, again).config == loaded.config
    assert yaml.safe_load(loaded.yaml()) == yaml.safe_load(loaded.annotated_yaml())


def test_interpolation_is_text_not_a_lookup(recipe: Path) -> None:
    assert (
        load_config(PretrainConfig, recipe, ["data.train=${oc.env:HOME}"]).config.data.train
        == "${oc.env:HOME}"
    )


def test_off_is_text_although_yaml_reads_a_false(recipe: Path) -> None:
    assert load_config(PretrainConfig, recipe, ["tracking.uri=off"]).config.tracking.uri == "off"


def test_override_without_equals_sign_is_explained(recipe: Path) -> None:
    assert "overrides are written key=value" in mistakes(recipe, "optim.lr")[0]


def test_broken_yaml_names_the_file(recipe: Path) -> None:
    recipe.write_text("data: [unclosed")
    assert str(recipe) in mistakes(recipe)[0]


def test_missing_recipe_suggests_a_shipped_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*configs/smoke/pretrain_vit\.yaml"):
        find_recipe("configs/smoke/pretrain_vti.yaml")


def test_finetuning_needs_some_loss(recipe: Path) -> None:
    lines = mistakes(recipe, "task_weight=0", schema=FinetuneConfig)
    assert any("every loss has weight 0" in line for line in lines)


def test_every_shipped_recipe_is_valid_and_starts_with_its_command() -> None:
    schemas = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "search": PretrainConfig}
    for program, schema in schemas.items():
        recipes = [*(packaged_root() / "configs" / program).glob("*.yaml")]
        recipes += (packaged_root() / "configs" / "smoke").glob(f"{program}*.yaml")
        assert recipes
        for path in recipes:
            load_config(schema, path)
            assert (
                f"mirada {program} configs/{path.parent.name}/{path.name}" in path.read_text().splitlines()[0]
            )
