"""The maps of a CoAtNet are those of its explicit softmax."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.maxxvit import Attention2d
from torch import Tensor, nn

from configs.base import ConfigError
from models.attention_maps import open_attention, open_maps
from models.relative_attention import RelativeAttentionMaps

SMALL: dict[str, Any] = {
    "img_size": 28,
    "in_chans": 1,
    "num_classes": 10,
    "stem_width": (16, 32),
    "embed_dim": (64,),
    "depths": (3,),
    "block_type": (("C", "T", "T"),),
    "head_hidden_size": None,
}


@pytest.mark.parametrize("name", ["coatnet_0_224", "coatnet_rmlp_nano_rw_224"])
def test_map_equals_the_mean_of_the_explicit_softmax_rows(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL).eval()
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad(), RelativeAttentionMaps(model, layers=(0, -1)) as maps:
        fused = model(images)
    taken = maps.take()
    assert [tuple(seen.shape) for seen in taken] == [(3, 7, 7)] * 2
    with torch.no_grad():
        logits, probabilities = _explicit(model, images)
    torch.testing.assert_close(fused, logits, rtol=1e-4, atol=1e-5)
    for seen, rows in zip(taken, probabilities, strict=True):
        torch.testing.assert_close(seen, rows.mean(dim=(1, 2)).unflatten(1, (7, 7)), rtol=0, atol=1e-5)


def test_maps_of_a_coatnet_are_chosen_by_what_it_is() -> None:
    model = timm.create_model("coatnet_0_224", **SMALL)
    assert isinstance(open_maps(model, (-1,)), RelativeAttentionMaps)
    assert isinstance(open_attention(model, (-1,)), RelativeAttentionMaps)


def test_a_layer_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match=r"attention in layers 0 \(stages.0.blocks.1.attn\), 1 \(stages.0.blocks.2.attn\)"
    ):
        open_attention(timm.create_model("coatnet_0_224", **SMALL), (2,))


def test_attention_within_partitions_has_no_map() -> None:
    model = timm.create_model("maxvit_rmlp_pico_rw_256", img_size=64)
    with pytest.raises(ConfigError, match="attends within partitions"):
        open_attention(model, (-1,))


def _explicit(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and softmax matrices [B, H, N, N] of the unfused path: what its dropout gets to see."""
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, Attention2d):
            module.fused_attn = False
            module.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return model(images), seen
