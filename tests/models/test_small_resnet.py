"""models.small_resnet: a ResNet whose first stage sees every pixel, with gates where timm's have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.attention import AttentionConfig, GatesConfig
from configs.training import ModelConfig
from models.build import build_model, load_release, own_module
from models.complexity import count_parameters
from models.energy_maps import EnergyMaps, stage_names
from models.release import save_for_timm


def build(side: int = 28, gate: str | None = None, **args: object) -> torch.nn.Module:
    attention = AttentionConfig() if gate is None else AttentionConfig(gates=(GatesConfig(name=gate),))
    config = ModelConfig(name="small_resnet", args=args, attention=attention)
    torch.manual_seed(0)
    return build_model(config, num_classes=10, in_chans=1, image_size=side).eval()


@pytest.mark.parametrize(
    ("side", "stride", "sides"),
    [(28, 1, [28, 28, 14, 7, 4]), (64, 1, [64, 64, 32, 16, 8]), (28, 2, [14, 14, 7, 4, 2])],
)
def test_the_stem_keeps_the_size_or_halves_it_and_each_stage_but_the_first_halves_it(
    side: int, stride: int, sides: list[int]
) -> None:
    model = build(side, stem_stride=stride)
    with EnergyMaps(model, stage_names(model)) as maps, torch.no_grad():
        model(torch.rand(1, 1, side, side))
    assert [found.shape[-1] for found in maps.take()] == sides
    assert [stage["reduction"] for stage in model.feature_info] == [
        stride * reduction for reduction in (1, 1, 2, 4, 8)
    ]


@pytest.mark.parametrize("gate", ["se", "eca", "cbam"])
def test_it_takes_gates(gate: str) -> None:
    assert count_parameters(build(gate=gate)) > count_parameters(build())


def test_sizes_run_from_a_tenth_of_a_million_to_twenty_million_parameters() -> None:
    small = build(channels=[8, 16, 32, 80])
    large = build(channels=[64, 128, 256, 512], layers=[3, 4, 6, 3])
    assert 0.08e6 < count_parameters(small) < 0.15e6 and 20e6 < count_parameters(large) < 22e6


def test_a_release_of_it_loads_here_with_equal_logits(tmp_path: Path) -> None:
    model, images = build(), torch.rand(2, 1, 28, 28)
    stats = {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,), "classes": tuple("abcdefghij")}
    save_for_timm(model, model.state_dict(), tmp_path, **stats)
    torch.testing.assert_close(load_release(str(tmp_path)).eval()(images), model(images))
    assert own_module("small_resnet") == "models.small_resnet"
