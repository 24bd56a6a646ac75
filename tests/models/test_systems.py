"""models.systems: what goes together goes together, and what does not is told all at once."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from configs.attention import AttentionConfig
from configs.base import ConfigError
from configs.training import ModelConfig
from models.build import build_model
from models.progressive import switched_layers
from models.regularizers import AttentionPenalties
from models.systems import apply_attention

CNN = {"name": "resnet18", "args": {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}}
VIT = {
    "name": "vit_tiny_patch16_224",
    "args": {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2},
}
PROGRESSIVE = {"over": "8 steps"}


def built(model: dict[str, Any], **attention: Any) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**model, "attention": attention})
    return build_model(config, num_classes=5, in_chans=3, image_size=32)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_without_options_names_weights_and_logits_are_timms(name: str) -> None:
    plain = timm.create_model(name, num_classes=5).eval()
    ours = apply_attention(timm.create_model(name, num_classes=5), AttentionConfig()).eval()
    assert list(ours.state_dict()) == list(plain.state_dict())
    ours.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "attention"),
    [
        (
            CNN,
            {
                "gates": {"name": "cbam"},
                "progressive": PROGRESSIVE,
                "regularize": [{"name": "gate_l1", "weight": 0.1}],
            },
        ),
        (
            CNN,
            {
                "gates": {"name": "shifted_window", "window": 2, "heads": 2},
                "progressive": PROGRESSIVE,
                "regularize": [{"name": "entropy", "weight": 0.1, "floor": 1.0}],
                "kernel": "math",
            },
        ),
        (VIT, {"two_stage": {"window": 2, "num_global": 4}, "progressive": PROGRESSIVE}),
        (
            VIT,
            {
                "two_stage": {"window": 3, "num_global": 4, "subset": "selected"},
                "progressive": PROGRESSIVE,
                "kernel": "float8",
            },
        ),
        (
            CNN,
            {
                "gates": {"name": "shifted_window", "window": 2, "heads": 2},
                "progressive": PROGRESSIVE,
                "regularize": [{"name": "uniform", "weight": 0.1}],
                "kernel": "float8",
            },
        ),
        (
            VIT,
            {
                "progressive": PROGRESSIVE,
                "regularize": [{"name": "uniform", "weight": 0.1}, {"name": "head_diversity", "weight": 0.1}],
                "kernel": "sdpa",
            },
        ),
    ],
)
def test_systems_go_together_with_layers_off_and_on(model: dict[str, Any], attention: dict[str, Any]) -> None:
    network = built(model, **attention)
    with torch.no_grad():  # new layers begin as the identity
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    penalties = AttentionPenalties(network, AttentionConfig.model_validate(attention).regularize)
    layers = switched_layers(network)
    assert len(layers) >= 3
    sums = []
    for shares in ([1.0] + [0.0] * (len(layers) - 1), [1.0] * len(layers)):
        for layer, share in zip(layers, shares, strict=True):
            layer.set_share(share)
        network.zero_grad()
        with penalties.watching():
            loss = (
                network(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().mean()
            )
        if found := penalties.take():
            loss = loss + penalties.weighted(found)
        loss.backward()
        sums.append(sum(p.grad is not None for p in network.parameters()))
    assert sums[0] < sums[1] == len(list(network.parameters()))


MIXED = [{"name": "lrn", "stages": [0]}, {"name": "se"}]


def test_penalties_on_layers_that_are_all_off_at_first_are_refused_before_the_run() -> None:
    attention = {
        "gates": MIXED,
        "progressive": {"over": "4 epochs", "start": 1},
        "regularize": [{"name": "gate_l1", "weight": 0.01}],
    }
    with pytest.raises(
        ConfigError, match=r"'gate_l1' needs a layer .* is number 2 of .* set that to 2 or more"
    ):
        built(CNN, **attention)
    built(CNN, **{**attention, "progressive": {"over": "4 epochs", "start": 2}})


def test_all_mistakes_are_told_at_once() -> None:
    config = ModelConfig.model_validate(
        {
            "name": "resnet18",
            "attention": {
                "kernel": "flash",
                "gates": {"name": "eca", "stages": [9], "reduction": 4},
                "progressive": {"over": "1 epoch"},
                "regularize": [{"name": "entropy", "weight": 1}, {"name": "gate_l1", "weight": 1}],
            },
        }
    )
    with pytest.raises(ConfigError) as caught:
        build_model(config, num_classes=5, in_chans=3, image_size=32)
    lines = str(caught.value).splitlines()
    wanted = ("gates.reduction", "gates.stages", "kernel is 'flash'", "progressive", "'entropy'", "'gate_l1'")
    assert len(lines) == len(wanted)
    for line, word in zip(lines, wanted, strict=True):
        assert line.startswith("model.attention") and word in line
