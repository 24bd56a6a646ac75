"""Every attention system of a recipe in its smallest form, for tests that must hold for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from configs.training import ModelConfig
from models.build import build_model
from models.progressive import Activation
from tests.support.tiny_run import SIZE

_RESNET = {
    "name": "resnet10t",
    "args": {"channels": (8, 8, 16, 16), "stem_width": 8, "drop_path_rate": 0.0},
}
_VIT = {
    "name": "vit_tiny_patch16_224",
    "args": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_path_rate": 0.0},
}
_SWIN_ARGS = {"patch_size": 2, "embed_dim": 16, "depths": (2,), "num_heads": (2,), "drop_path_rate": 0.0}
_SWIN = {"name": "swin_tiny_patch4_window7_224", "args": {**_SWIN_ARGS, "window_size": 4}}

SYSTEMS: dict[str, dict[str, Any]] = {
    "resnet": _RESNET,
    "local response normalization": {**_RESNET, "attention": {"gates": {"name": "lrn", "stages": [0, 1]}}},
    "squeeze and excitation": {**_RESNET, "attention": {"gates": {"name": "se", "reduction": 4}}},
    "cbam": {**_RESNET, "attention": {"gates": {"name": "cbam", "reduction": 4}}},
    "eca": {**_RESNET, "attention": {"gates": {"name": "eca"}}},
    "self-attention in a resnet": {**_RESNET, "attention": {"gates": {"name": "mhsa", "stages": [4]}}},
    "shifted windows in a resnet": {
        **_RESNET,
        "attention": {"gates": {"name": "shifted_window", "stages": [1], "window": 2}},
    },
    "searched gates": {
        **_RESNET,
        "attention": {"search": {"choices": ["none", {"name": "se", "reduction": 4}, {"name": "cbam"}]}},
    },
    "efficientnet": {"name": "test_efficientnet", "args": {}},
    "vit": _VIT,
    "swin": _SWIN,
    "swin v2": {"name": "swinv2_tiny_window8_256", "args": {**_SWIN_ARGS, "window_size": 4}},
    "float8": {**_VIT, "attention": {"kernel": "float8"}},
    "float8 in swin": {**_SWIN, "attention": {"kernel": "float8"}},
    "two-stage": {**_VIT, "attention": {"two_stage": {"window": 2, "num_global": 4}}},
    "dynamic": {**_VIT, "attention": {"dynamic": {"threshold": 0.9}}},
    "progressive": {**_VIT, "attention": {"progressive": {"over": "4 steps"}}},
    "regularized": {
        **_VIT,
        "attention": {
            "regularize": [
                {"name": "uniform", "weight": 0.1},
                {"name": "entropy", "weight": 0.1, "floor": 1.0},
                {"name": "head_diversity", "weight": 0.1},
            ]
        },
    },
    "regularized gates": {
        **_RESNET,
        "attention": {"gates": {"name": "se"}, "regularize": [{"name": "gate_l1", "weight": 0.1}]},
    },
}

ACTIVATION = Activation(over_steps=4, fade_steps=2, start=1)
"""When the layers of the progressive system come in."""


def system_config(name: str) -> ModelConfig:
    """As a recipe's `model` section."""
    return ModelConfig.model_validate(SYSTEMS[name])


def build_system(name: str) -> nn.Module:
    """The same weights each time; for images of SIZE pixels and ten classes."""
    torch.manual_seed(0)
    model = build_model(system_config(name), num_classes=10, in_chans=3, image_size=SIZE)
    with torch.no_grad():  # some parts begin at zero, and would hide behind it
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
