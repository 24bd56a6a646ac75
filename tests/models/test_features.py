"""models.features: features of places, whatever the network is made of."""

from __future__ import annotations

import pytest
import timm
import torch

from configs.base import ConfigError
from configs.training import ModelConfig
from models.build import build_model
from models.features import Features, feature_widths


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "reg_tokens": 2}, (192, 4, 4)),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "embed_dim": 24}, (192, 2, 2)),
        ("resnet10t", {}, (512, 1, 1)),
    ],
)
def test_the_last_features_have_the_places_of_the_network(
    name: str, args: dict[str, object], shape: tuple[int, int, int]
) -> None:
    model = timm.create_model(name, **args)
    side = int(args.get("img_size", 32))
    with Features(model) as features, torch.no_grad():
        model.eval()(torch.rand(2, 3, side, side))
    (found,) = features.take()
    assert tuple(found.shape) == (2, *shape)
    assert feature_widths(model, (-1,), (3, side, side)) == shape[:1]


def test_tokens_are_those_of_the_block_without_prefix_in_rows_and_columns() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=3).eval()
    images, blocks = torch.rand(2, 3, 32, 32), []
    vit.blocks[0].register_forward_hook(lambda _module, _inputs, output: blocks.append(output))
    with Features(vit, (0,)) as features, torch.no_grad():
        vit(images)
    (found,) = features.take()
    assert torch.equal(found.permute(0, 2, 3, 1).flatten(1, 2), blocks[0][:, 1:])


def test_a_hybrid_has_the_places_of_its_stem() -> None:
    args = {"stem_channels": [8, 16, 24], "depth": 1, "num_heads": 3}
    config = ModelConfig(name="residual_vit", args=args)
    model = build_model(config, num_classes=5, in_chans=1, image_size=28)
    with Features(model) as features, torch.no_grad():
        model(torch.rand(1, 1, 28, 28))
    assert features.take()[0].shape == (1, 24, 7, 7)


def test_widths_leave_the_mode_and_the_statistics_of_a_network_alone() -> None:
    model = timm.create_model("resnet10t").train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert feature_widths(model, (1, -1), (3, 32, 32)) == (64, 512)
    assert model.training and all(torch.equal(before[name], b) for name, b in model.named_buffers())


def test_a_stage_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match=r"9 is asked for, but the model has features in stages 0 \(act1\), 1"
    ):
        Features(timm.create_model("resnet10t"), (9,))
