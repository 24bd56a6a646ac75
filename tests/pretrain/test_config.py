"""What a pretraining recipe may say of its objective, and how a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.base import ConfigError
from configs.load import load_config
from configs.text import TextConfig
from pretrain.config import MaeConfig, PretrainConfig, SiglipConfig, SimMimConfig, SupervisedConfig

MINIMAL = """
data: {train: shards}
model: {name: vit_tiny_patch16_224}
optim: {lr: 3e-4}
train: {duration: 3 epochs, global_batch: 16}
"""


def load(tmp_path: Path, text: str = "", *overrides: str) -> PretrainConfig:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL + text)
    return load_config(PretrainConfig, path, overrides).config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", SupervisedConfig()),
        ("objective: {name: mae}", MaeConfig(name="mae", mask_ratio=0.75, decoder_width=512)),
        (
            "objective: {name: simmim, mask_patch: 16}",
            SimMimConfig(name="simmim", mask_ratio=0.6, mask_patch=16),
        ),
        (
            "objective: {name: siglip, text: {layers: 6}}",
            SiglipConfig(
                name="siglip",
                text=TextConfig(width=768, layers=6, heads=12, context_length=64),
                scale=10.0,
                bias=-10.0,
                prompts=("a photo of a {}.",),
            ),
        ),
    ],
)
def test_an_objective_is_chosen_by_its_name(tmp_path: Path, text: str, expected: object) -> None:
    config = load(tmp_path, text)
    assert config.objective == expected
    assert config.is_supervised == (text == "")


def test_the_effective_config_can_be_fed_back_in(tmp_path: Path) -> None:
    for text in ("", "objective: {name: mae}\nprobe: {neighbours: 10}", "objective: {name: siglip}"):
        config = load(tmp_path, text)
        assert PretrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probe.neighbours=5"], "'probe' evaluates features"),
        (["objective.name=mae", "train.label_smoothing=0.1"], "no use for train.label_smoothing"),
        (["objective.name=simmim", "data.augment.mixup=0.8"], "no use for data.augment.mixup and cutmix"),
        (["objective.name=mae", "model.num_classes=3"], "no use for model.num_classes"),
        (["objective.name=mae", "objective.mask_ratio=1.5"], r"mask_ratio.*1\.5"),
        (
            ["objective.name=mea"],
            "objective: 'mea' is not a name; allowed are 'mae', 'siglip', 'simmim', 'supervised'",
        ),
        (["objective.name=siglip", "probe.neighbours=5"], r"by the names of classes \(objective.prompts\)"),
        (
            ["objective.name=siglip", "data.repeats=3", "data.augment.cutmix=1", "model.num_classes=3"],
            r"each image and its caption and has no use for model.num_classes and data.augment.mixup and cutmix and "
            r"data.repeats \(copies of a sample would be taken for different ones\)",
        ),
        (["objective.name=siglip", "objective.text.heads=5"], "width 768 is no multiple of 5 heads"),
        (
            ["objective.name=siglip", "objective.prompts=[photo]"],
            r"write the class once as \{\}, as in 'a photo of a \{\}.', not 'photo'",
        ),
        (
            ["objective.name=mae", "objective.mask_ration=0.5"],
            r"objective\.mask_ration: no such key; did you mean 'mask_ratio'\?",
        ),
        (
            ["objective.name=simmim", "objective.decoder_depth=8"],
            r"objective\.decoder_depth: no such key; allowed are name, mask_ratio, mask_patch  ",
        ),
    ],
)
def test_a_setting_that_would_be_ignored_is_a_mistake(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, "", *overrides)
