"""finetune.follow: the checkpoint says what the recipe leaves open, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from configs.attention import AttentionConfig, GatesConfig
from configs.base import ConfigError
from configs.data import DataConfig
from finetune.config import FinetuneConfig
from finetune.follow import follow_checkpoint

SMALL = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}


def write(folder: Path, *, channels: int = 3, **cfg: Any) -> str:
    model = timm.create_model("resnet18", num_classes=3, in_chans=channels, **SMALL)
    model.pretrained_cfg.update(cfg)
    save_for_hf(model, folder, model_config={}, safe_serialization=True)
    return str(folder)


def config(checkpoint: str, *, data: dict[str, Any] | None = None, **fields: Any) -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {
            "data": {"train": "somewhere", **(data or {})},
            "checkpoint": checkpoint,
            "optim": {"lr": 1e-3},
            "train": {"duration": "1 epoch", "global_batch": 8},
            **fields,
        }
    )


def followed(checkpoint: str, **fields: Any) -> DataConfig:
    return follow_checkpoint(config(checkpoint, **fields))[0].data


def test_input_normalization_interpolation_and_crop_are_the_checkpoints(tmp_path: Path) -> None:
    reference = write(
        tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), input_size=(3, 48, 48),
        interpolation="bicubic", crop_pct=0.9,
    )  # fmt: skip
    found, source = follow_checkpoint(config(reference))
    data = found.data
    assert (data.channels, data.image_size) == (3, 48)
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (data.interpolation, data.eval_crop) == ("bicubic", 0.9)
    assert found.model.name == "resnet18" and source is not None and source.reference == reference


def test_what_the_recipe_gives_counts_also_where_it_is_the_default(tmp_path: Path) -> None:
    reference = write(tmp_path, mean=(0.1,) * 3, std=(0.4,) * 3, interpolation="bicubic", crop_pct=0.9)
    default = DataConfig(train="x")
    given = {"mean": default.mean, "interpolation": "bilinear", "eval_crop": None, "image_size": 224}
    data = followed(reference, data=given)
    assert (data.mean, data.interpolation, data.eval_crop) == (default.mean, "bilinear", None)
    assert data.std == (0.4,) * 3


def test_a_grey_checkpoint_makes_a_grey_run_or_serves_three_channels(tmp_path: Path) -> None:
    reference = write(tmp_path, channels=1, mean=(0.3,), std=(0.35,), input_size=(1, 28, 28))
    grey, colour = followed(reference), followed(reference, data={"channels": 3})
    assert (grey.channels, grey.mean, grey.std) == (1, (0.3,), (0.35,))
    assert (colour.channels, colour.mean, colour.std) == (3, (0.3,) * 3, (0.35,) * 3)


def test_a_squashed_image_stays_one(tmp_path: Path) -> None:
    assert followed(write(tmp_path, crop_mode="squash", crop_pct=1.0)).eval_crop is None


def test_a_timm_name_decides_too_without_being_fetched() -> None:
    found, _ = follow_checkpoint(config("vit_base_patch16_224.augreg_in21k"))
    assert found.model.name == "vit_base_patch16_224"
    assert (found.data.mean, found.data.eval_crop, found.data.interpolation) == ((0.5,) * 3, 0.9, "bicubic")


def test_a_bare_file_decides_nothing_and_needs_the_name_of_its_network(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    reference = str(tmp_path / "a.pth")
    named = config(reference, model={"name": "resnet18"})
    assert follow_checkpoint(named)[0] == named
    with pytest.raises(ConfigError, match=r"does not say what network it is of: set model.name"):
        follow_checkpoint(config(reference))


def test_gates_of_a_release_are_put_in_again(tmp_path: Path) -> None:
    reference = write(tmp_path)
    content = (tmp_path / "config.json").read_text()
    ours = '"mirada": {"attention": {"gates": {"name": "se", "stages": [1]}}}, "architecture"'
    (tmp_path / "config.json").write_text(content.replace('"architecture"', ours, 1))
    found, _ = follow_checkpoint(config(reference))
    assert found.model.attention == AttentionConfig(gates=(GatesConfig(name="se", stages=(1,)),))


def test_without_a_checkpoint_nothing_changes() -> None:
    plain = config("unused", model={"name": "resnet18"}).model_copy(update={"checkpoint": None})
    assert follow_checkpoint(plain) == (plain, None)
