"""A release is a timm folder: plain timm builds the same network from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from configs.training import ModelConfig, RunConfig
from engine.results.evaluate import Scores
from engine.results.release import Origin, write_release
from engine.sharding.zero import build_engine
from engine.world import World
from finetune.exporting.torch_program import write_program
from models.build import build_model, load_release
from tests.support.tiny_run import MemoryLoader, Supervised, tiny_config, tiny_engine

CLASSES = [f"class {n}" for n in range(10)]
SCORES = Scores(num_images=32, top1=50.0, top5=90.0, ece=0.1, loss=1.5)


def release(path: Path, model: torch.nn.Module, weights: dict[str, torch.Tensor], config: RunConfig) -> Path:
    return write_release(
        path,
        model=model,
        weights=weights,
        config=config,
        classes=CLASSES,
        origin=Origin(command="mirada pretrain x.yaml", run_id="4f3c", data_digest="abc", step=12),
        scores=SCORES,
    )


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_plain_timm_gives_the_logits_of_the_trained_weights(stage: int, world: World, tmp_path: Path) -> None:
    config = tiny_config(stage=stage, world_size=1)
    args = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    config = config.model_copy(update={"model": ModelConfig(name="vit_tiny_patch16_224", args=args)})
    model = build_model(config.model, num_classes=10, in_chans=3, image_size=16)
    engine, batch = build_engine(model, config, world), MemoryLoader(world).batch(0)
    for step in range(3):
        engine.accumulate(Supervised()(engine.model, batch).total, last=True)
        engine.step(step, learning_rate=1e-2)
    images = torch.rand(4, 3, 16, 16)
    with engine.evaluation() as evaluated, torch.no_grad():
        expected = evaluated(images)
    folder = release(tmp_path / "release", engine.module, engine.release_weights(), config)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(loaded(images), expected)
    assert not torch.equal(torch.zeros_like(expected), expected)


def test_it_says_how_pixels_are_prepared_and_what_the_classes_are(tmp_path: Path, world: World) -> None:
    config = tiny_config(stage=0, world_size=1)
    engine = tiny_engine(config, world)
    folder = release(tmp_path / "release", engine.module, engine.release_weights(), config)
    cfg = timm.create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg
    assert tuple(cfg["input_size"]) == (3, 16, 16)
    assert tuple(cfg["mean"]) == config.data.mean and tuple(cfg["std"]) == config.data.std
    assert (cfg["crop_pct"], cfg["crop_mode"], cfg["interpolation"]) == (1.0, "squash", "bilinear")
    assert cfg["num_classes"] == 10
    assert list(cfg["label_names"]) == CLASSES
    card = (folder / "README.md").read_text()
    assert "top-1 50.00 %" in card and "mirada pretrain x.yaml" in card


def test_a_release_replaces_a_former_one_and_leaves_nothing_beside_it(tmp_path: Path, world: World) -> None:
    config = tiny_config(stage=0, world_size=1)
    engine = tiny_engine(config, world)
    for _ in range(2):
        release(tmp_path / "release", engine.module, engine.release_weights(), config)
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
    assert sorted(path.name for path in (tmp_path / "release").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("name", "args", "attention"),
    [
        ("resnet10t", {"channels": [8, 8, 16, 16]}, {"gates": {"name": "cbam", "stages": [0, 3]}}),
        (
            "vit_tiny_patch16_224",
            {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
            {"two_stage": {"window": 2, "num_global": 1}, "progressive": {"over": "2 steps"}},
        ),
        (
            "vit_tiny_patch16_224",
            {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
            {"dynamic": {"threshold": 0.5}},
        ),
    ],
)
def test_attention_that_is_not_timms_is_built_again_by_ours_and_the_card_says_so(
    tmp_path: Path, name: str, args: dict[str, Any], attention: dict[str, Any]
) -> None:
    chosen = ModelConfig.model_validate({"name": name, "args": args, "attention": attention})
    config = tiny_config(stage=0, world_size=1).model_copy(update={"model": chosen})
    model = build_model(chosen, num_classes=10, in_chans=3, image_size=16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = release(tmp_path / "release", model, model.state_dict(), config)
    images = torch.rand(3, 3, 16, 16)
    kept = json.loads((folder / "config.json").read_text())["mirada"]["attention"]
    assert all(kept[system] == attention[system] for system in kept)
    assert torch.equal(load_release(str(folder)).eval()(images), model(images))
    card = (folder / "README.md").read_text()
    assert "from mirada.models.build import load_release" in card and "timm.create_model" not in card


def test_a_network_in_eight_bits_keeps_its_kernel_and_timm_loads_it_in_full_precision(tmp_path: Path) -> None:
    args = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    chosen = ModelConfig.model_validate(
        {"name": "vit_tiny_patch16_224", "args": args, "attention": {"kernel": "float8"}}
    )
    config = tiny_config(stage=0, world_size=1).model_copy(update={"model": chosen})
    model = build_model(chosen, num_classes=10, in_chans=3, image_size=16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = release(tmp_path / "release", model, model.state_dict(), config)
    images = torch.rand(3, 3, 16, 16)
    expected = model(images)
    assert torch.equal(load_release(str(folder)).eval()(images), expected)
    full = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    assert 0 < (full - expected).abs().max() < 0.1 * full.abs().max()
    card = (folder / "README.md").read_text()
    assert "timm.create_model" in card and "kernel: float8" in card
    # What is exported has full precision too.
    assert write_program(load_release(str(folder)), tmp_path / "network.pt2") < 1e-5
