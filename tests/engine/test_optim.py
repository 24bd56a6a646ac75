"""Which parameters decay, and at what rate they learn."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from configs.base import ConfigError
from configs.training import OptimConfig
from engine.optim import build_optimizer, parameter_groups, set_learning_rate


def vit() -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=24, depth=3, num_heads=2, num_classes=5
    )
    return model


def placed(model: nn.Module, config: OptimConfig) -> dict[str, tuple[float, float]]:
    """Decay and scale of each parameter by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["weight_decay"], group["lr_scale"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }


def test_norms_biases_and_positions_do_not_decay_and_all_else_does() -> None:
    model = vit()
    for name, (decay, scale) in placed(model, OptimConfig(lr=1.0, weight_decay=0.1)).items():
        free = name.endswith(".bias") or "norm" in name or name in ("pos_embed", "cls_token")
        assert (decay, scale) == (0.0 if free else 0.1, 1.0), name


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = vit()
    model.get_parameter("blocks.0.mlp.fc1.weight").requires_grad_(False)
    grouped = [p for g in parameter_groups(model, OptimConfig(lr=1.0, layer_decay=0.5)) for p in g["params"]]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(trainable)
    assert {id(p) for p in grouped} == {id(p) for p in trainable}


def test_layer_decay_shrinks_the_rate_by_its_factor_per_block_towards_the_input() -> None:
    scales = placed(vit(), OptimConfig(lr=1.0, layer_decay=0.5))
    per_block = [scales[f"blocks.{i}.mlp.fc1.weight"][1] for i in range(3)]
    assert per_block[0] / per_block[1] == per_block[1] / per_block[2] == 0.5
    assert scales["head.weight"][1] == 1.0
    assert scales["patch_embed.proj.weight"][1] == min(scale for _, scale in scales.values()) < per_block[0]


def test_layer_decay_on_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"optim.layer_decay: Linear does not say how its layers are ordered"
    ):
        parameter_groups(nn.Linear(2, 2), OptimConfig(lr=1.0, layer_decay=0.5))


def test_the_rate_of_a_step_reaches_each_group_times_its_scale() -> None:
    optimizer = build_optimizer(vit(), OptimConfig(lr=1.0, layer_decay=0.5))
    set_learning_rate(optimizer.param_groups, 0.01)
    assert all(group["lr"] == pytest.approx(0.01 * group["lr_scale"]) for group in optimizer.param_groups)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]
