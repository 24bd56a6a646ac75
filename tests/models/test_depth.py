"""models.depth: how far through a network its modules end, and which are nearest."""

from __future__ import annotations

import pytest
import timm

from models.depth import nearest_depths, relative_depths


def test_blocks_of_a_vit_are_at_equal_distances() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=12)
    depths = relative_depths(vit, [f"blocks.{index}" for index in range(12)])
    assert depths == pytest.approx([(index + 1) / 12 for index in range(12)], abs=0.04)


def test_depths_are_shares_of_the_layers_with_weights() -> None:
    resnet = timm.create_model("resnet18")  # conv1, bn1; four stages of 8, 10, 10, 10 layers; fc
    depths = relative_depths(resnet, ["act1", "bn1", "layer1", "layer2", "layer4"])
    assert depths == pytest.approx([0.0, 2 / 41, 10 / 41, 20 / 41, 40 / 41])


def test_the_nearest_depth_is_found_and_of_two_the_deeper() -> None:
    assert nearest_depths([0.1, 0.5, 1.0], [0.0, 0.25, 0.75, 0.9]) == (0, 2, 3)
