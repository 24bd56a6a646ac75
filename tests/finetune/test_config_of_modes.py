"""finetune.config: what is trained is one field, and what does not go together is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.base import ConfigError
from configs.load import load_config
from configs.modes import KnnMode, LastBlocksMode, LoraMode
from configs.same_run import refuse_other_run
from finetune.config import FinetuneConfig

RECIPE = """\
data: {train: somewhere, val: elsewhere}
checkpoint: runs/vit
optim: {lr: 1e-3}
train: {duration: 1 epoch, global_batch: 8}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def load(recipe: Path, *overrides: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, recipe, overrides).config


def test_a_mode_is_given_by_its_name_or_with_its_settings(recipe: Path) -> None:
    assert load(recipe).mode.name == "full"
    assert load(recipe, "mode=lora").mode == LoraMode(name="lora", rank=8, alpha=16.0)
    assert load(recipe, "mode.name=lora", "mode.rank=4").mode == LoraMode(name="lora", rank=4)
    assert load(recipe, "mode.name=last_blocks", "mode.count=2").mode == LastBlocksMode(
        name="last_blocks", count=2
    )


def test_knn_needs_no_settings_of_a_training(recipe: Path) -> None:
    recipe.write_text("{data: {train: a, val: b}, checkpoint: runs/vit, mode: knn}")
    config = load(recipe)
    assert config.mode == KnnMode(name="knn") and config.train.global_batch == 64
    assert load(recipe, "train.global_batch=32").train.global_batch == 32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=lorra"], r"mode: 'lorra' is not a name; allowed are 'full', 'linear_probe', 'last_blocks',"),
        (["mode=last_blocks"], r"mode\.count: missing; give it a value"),
        (["mode.name=last_blocks", "mode.count=0"], r"mode\.count: 0 is not allowed: .*greater than or equal to 1"),
        (["mode.name=lora", "mode.rnak=4"], r"mode\.rnak: no such key; did you mean 'rank'\?"),
        (["mode.name=lora", "mode.rank=0"], r"mode\.rank: 0 is not allowed"),
        (["mode=lora", "checkpoint=null"], r"mode.name 'lora' keeps weights of a checkpoint, and none is given"),
        (["checkpoint=null"], r"'model.name' is missing: name an architecture of timm, or set 'checkpoint'"),
        (["mode=linear_probe", "optim.layer_decay=0.7"], r"layer_decay is of several layers, and linear_probe"),
        (["mode=knn", "teacher.checkpoint=runs/t"], r"mode.name 'knn' learns nothing: leave 'teacher' out"),
        (
            ["mode=knn", "students.tiny={name: resnet18}"],
            r"mode.name 'knn' learns nothing: leave 'students' out",
        ),
        (["mode=knn", "data.val=null"], r"mode.name 'knn' scores the images of data.val: set it"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_mode_is_named(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(recipe, *overrides)


def test_several_mistakes_are_told_at_once(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)none is given: set 'checkpoint'; 'model.name' is missing"):
        load(recipe, "mode=lora", "checkpoint=null")


def test_what_a_checkpoint_decides_is_not_written_into_a_recipe(recipe: Path, tmp_path: Path) -> None:
    """A submitted run reads the recipe that the login node wrote; a default in it would be a wish."""
    loaded = load_config(FinetuneConfig, recipe, ["data.image_size=48", "model.args.patch_size=8"])
    for text in (loaded.yaml(), loaded.annotated_yaml()):
        (tmp_path / "again.yaml").write_text(text)
        again = load_config(FinetuneConfig, tmp_path / "again.yaml").config
        assert again == loaded.config and again.undecided == loaded.config.undecided
    assert "data.mean" in again.undecided and "data.image_size" not in again.undecided


def test_what_a_checkpoint_decides_does_not_make_it_another_run(recipe: Path, tmp_path: Path) -> None:
    """A login node, which reads no checkpoint, compares a recipe with the folder of the run that it began."""
    config = load(recipe)
    begun = config.model_copy(
        update={
            "data": config.data.model_copy(update={"mean": (0.5,) * 3, "image_size": 32}),
            "model": config.model.model_copy(update={"name": "resnet18"}),
        }
    )
    (tmp_path / "run").mkdir()
    dumped = begun.model_dump_json()
    (tmp_path / "run" / "config.yaml").write_text(dumped)
    assert {"data.mean", "data.image_size", "model.name"} <= config.undecided
    refuse_other_run(tmp_path / "run", config)
    with pytest.raises(ConfigError, match=r"data\.image_size is 32 there and 48 here"):
        refuse_other_run(tmp_path / "run", load(recipe, "data.image_size=48"))
    with pytest.raises(ConfigError, match=r"mode\.name is 'full' there and 'linear_probe' here"):
        refuse_other_run(tmp_path / "run", load(recipe, "mode=linear_probe"))
