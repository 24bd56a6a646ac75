"""models.freezing: what is frozen neither moves nor counts, and what is trained is what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from configs.base import ConfigError
from configs.training import OptimConfig
from engine.sharding.optim import parameter_groups
from models.freezing import count_trained, head_weights, last_block_weights, train_only

NETWORKS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4,
    },
    "resnet18": {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)},
    "nf_seresnet26": {"depths": (1, 1), "channels": (16, 32), "stem_type": "3x3", "stem_chs": 8},
    "mobilenetv2_035": {},
}  # fmt: skip
HEADS = {"resnet18": "fc.", "nf_seresnet26": "head.fc.", "mobilenetv2_035": "classifier."}
LAST = {
    "vit_tiny_patch16_224": ("blocks.2.", "norm.", "head."),
    "swin_tiny_patch4_window7_224": ("layers.1.blocks.1.", "norm.", "head.fc."),
    "resnet18": ("layer4.0.", "fc."),
    "nf_seresnet26": ("stages.1.0.", "final_conv.", "head.fc."),
    "mobilenetv2_035": ("blocks.6.0.", "conv_head.", "bn2.", "classifier."),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **NETWORKS[name])
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_changes_the_classifier_and_nothing_else_statistics_included(name: str) -> None:
    model = make(name)
    names = head_weights(model)
    assert names == {n for n, _ in model.named_parameters() if n.startswith(HEADS.get(name, "head."))}
    plain = make(name).eval()
    train_only(model, names)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(model, OptimConfig(lr=1.0)), lr=1.0)
    model.train()(torch.rand(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == names
    assert (
        sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == count_trained(model)[0]
    )
    # Plain timm reads what is released, and computes the same.
    plain.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(plain(images), model.eval()(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_block_comes_with_all_that_is_behind_it(name: str) -> None:
    model = make(name)
    assert last_block_weights(model, 1) == {
        n for n, _ in model.named_parameters() if n.startswith(LAST[name])
    }
    assert last_block_weights(model, 2) > last_block_weights(model, 1)


def test_more_blocks_than_there_are_is_an_error_that_counts_them() -> None:
    model = make("vit_tiny_patch16_224")
    assert not any(name.startswith("patch_embed") for name in last_block_weights(model, 3))
    with pytest.raises(
        ConfigError, match=r"mode.count is 4, but 'vit_tiny_patch16_224' has 3 blocks behind its stem"
    ):
        last_block_weights(model, 4)


def test_trained_batch_norm_goes_on_counting_and_a_frozen_one_does_not() -> None:
    model = make("resnet18")
    train_only(model, last_block_weights(model, 1))
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model.train()(torch.rand(4, 3, 16, 16))
    moved = {key for key, value in before.items() if not torch.equal(value, model.state_dict()[key])}
    assert moved == {key for key in before if key.startswith("layer4")}


def test_statistics_that_cannot_be_held_are_an_error() -> None:
    model = timm.create_model("levit_128s", num_classes=5)
    with pytest.raises(
        ConfigError, match=r"the statistics of a BatchNorm1d cannot be held .* mode.name: full"
    ):
        train_only(model, head_weights(model))


def test_a_network_without_a_classifier_is_an_error() -> None:
    model = make("resnet18")
    model.reset_classifier(0)
    with pytest.raises(ConfigError, match=r"'resnet18' has no classifier of its own"):
        head_weights(model)
