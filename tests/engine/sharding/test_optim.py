"""Which parameters decay, at what rate they learn, and which optimizer gets them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.optim import _param_groups
from torch import nn
from torch.optim import Optimizer

from configs.base import ConfigError
from configs.training import OptimConfig
from engine.sharding.optim import build_optimizer, parameter_groups, set_learning_rate


def vit() -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=24, depth=3, num_heads=2, num_classes=5
    )
    return model


def swin() -> nn.Module:
    model: nn.Module = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=8,
        depths=(2, 1),
        num_heads=(1, 2),
        num_classes=5,
    )
    return model


def no_muon() -> type[Optimizer]:
    raise AssertionError("only Muon needs DeepSpeed")


def placed(model: nn.Module, config: OptimConfig) -> dict[str, tuple[float, float]]:
    """Decay and scale of each parameter by name."""
    return by_name(model, parameter_groups(model, config))


def by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["weight_decay"], group["lr_scale"])
        for group in groups
        for parameter in group["params"]
    }


def test_norms_biases_and_positions_do_not_decay_and_all_else_does() -> None:
    model = vit()
    for name, (decay, scale) in placed(model, OptimConfig(lr=1.0, weight_decay=0.1)).items():
        free = name.endswith(".bias") or "norm" in name or name in ("pos_embed", "cls_token")
        assert (decay, scale) == (0.0 if free else 0.1, 1.0), name


@pytest.mark.parametrize("make", [vit, swin])
def test_layers_and_decay_are_those_of_timm(make: Any) -> None:
    model = make()
    timms = _param_groups.param_groups_layer_decay(
        model, weight_decay=0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.7
    )
    assert placed(model, OptimConfig(lr=1.0, weight_decay=0.1, layer_decay=0.7)) == by_name(model, timms)


def test_what_a_model_names_stays_free_of_decay_within_another_module_too() -> None:
    wrapped = nn.ModuleDict({"encoder": swin(), "decoder": nn.Linear(2, 2)})
    decays = {name: decay for name, (decay, _) in placed(wrapped, OptimConfig(lr=1.0)).items()}
    tables = [name for name in decays if name.endswith("relative_position_bias_table")]
    assert tables and not any(decays[name] for name in tables)
    assert decays["decoder.weight"] and not decays["decoder.bias"]


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
    optimizer = build_optimizer(vit(), OptimConfig(lr=1.0, layer_decay=0.5), muon=no_muon)
    set_learning_rate(optimizer.param_groups, 0.01)
    assert all(group["lr"] == pytest.approx(0.01 * group["lr_scale"]) for group in optimizer.param_groups)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]


def test_muon_gets_hidden_matrices_at_the_size_of_an_adamw_update_and_adamw_the_rest() -> None:
    model = vit()
    names = {parameter: name for name, parameter in model.named_parameters()}
    rate, decay = {}, {}
    for group in parameter_groups(model, OptimConfig(name="muon", lr=1.0, weight_decay=0.1)):
        for parameter in group["params"] if group["use_muon"] else ():
            rate[names[parameter]] = group["lr_scale"]
            decay[names[parameter]] = group["lr_scale"] * group["weight_decay"]
    kinds = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert set(rate) == {f"blocks.{block}.{kind}" for block in range(3) for kind in kinds}
    assert rate["blocks.0.mlp.fc1.weight"] == pytest.approx(0.2 * 24**0.5)
    assert rate["blocks.0.mlp.fc2.weight"] == pytest.approx(0.2 * 96**0.5)
    assert all(value == pytest.approx(0.1) for value in decay.values())


@pytest.mark.parametrize("name", ["lion", "lamb"])
def test_a_step_that_is_to_be_skipped_leaves_weights_and_state_as_they_were(name: Any) -> None:
    model = nn.Linear(3, 2)
    optimizer: Any = build_optimizer(model, OptimConfig(name=name, lr=0.1), muon=no_muon)
    model(torch.ones(1, 3)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(model.weight, before) and not optimizer.state
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not torch.equal(model.weight, before)
