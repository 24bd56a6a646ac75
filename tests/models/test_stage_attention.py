"""models.stage_attention: self-attention among the places of a map, against torch's layer and explicit windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.stage_attention import MapAttention, WindowAttention
from models.systems import use_attend

CHANNELS, HEADS = 12, 3


def layer_maps(height: int, width: int) -> Tensor:
    return torch.randn(2, CHANNELS, height, width, generator=torch.Generator().manual_seed(0))


def awake(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return layer.eval()


def reference(layer: MapAttention | WindowAttention) -> nn.MultiheadAttention:
    """torch's own layer with the same weights."""
    torchs = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True).eval()
    torchs.load_state_dict(
        {
            "in_proj_weight": layer.attn.qkv.weight,
            "in_proj_bias": layer.attn.qkv.bias,
            "out_proj.weight": layer.attn.proj.weight,
            "out_proj.bias": layer.attn.proj.bias,
        }
    )
    return torchs


def normed(maps: Tensor, norm: nn.Module) -> Tensor:
    return norm(maps.permute(0, 2, 3, 1))


def test_every_place_attends_to_every_place_as_in_torchs_layer() -> None:
    layer = awake(MapAttention(CHANNELS, heads=HEADS))
    assert isinstance(layer, MapAttention)
    maps = layer_maps(5, 7)
    tokens = normed(maps, layer.norm).flatten(1, 2)
    mixed, _ = reference(layer)(tokens, tokens, tokens)
    expected = maps + mixed.unflatten(1, (5, 7)).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(maps), expected)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 12), (6, 9), (3, 3), (1, 1)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("attend", [False, True])
def test_windows_see_what_lies_in_the_same_window_and_nothing_else(
    height: int, width: int, shifted: bool, attend: bool
) -> None:
    layer = awake(WindowAttention(CHANNELS, heads=HEADS, window=4, shifted=shifted))
    assert isinstance(layer, WindowAttention)
    if attend:
        use_attend(layer)
    maps = layer_maps(height, width)
    torch.testing.assert_close(layer(maps), maps + by_places(layer, maps, shifted), rtol=1e-4, atol=1e-5)


def by_places(layer: WindowAttention, maps: Tensor, shifted: bool) -> Tensor:
    """Place by place: its window's places, padding among them, with the bias of their relative position."""
    image = normed(maps, layer.norm1)
    height, width = image.shape[1:3]
    shift = 2 if shifted else 0
    rolled = image.roll((-shift, -shift), (1, 2))
    padded_h, padded_w = -(-height // 4) * 4, -(-width // 4) * 4
    padded = rolled.new_zeros(len(image), padded_h, padded_w, CHANNELS)
    padded[:, :height, :width] = rolled
    q, k, v = layer.attn.qkv(padded).unflatten(-1, (3, HEADS, -1)).unbind(3)
    table = layer.attn.relative_position_bias_table.detach()
    out = torch.zeros_like(padded)
    for row in range(padded_h):
        for column in range(padded_w):
            seen = [
                (r, c)
                for r in range(row // 4 * 4, row // 4 * 4 + 4)
                for c in range(column // 4 * 4, column // 4 * 4 + 4)
                if not shifted or region(r, padded_h) == region(row, padded_h)
                if not shifted or region(c, padded_w) == region(column, padded_w)
            ]
            bias = torch.stack([table[(row - r + 3) * 7 + column - c + 3] for r, c in seen], dim=1)
            keys = torch.stack([k[:, r, c] for r, c in seen], dim=2)
            values = torch.stack([v[:, r, c] for r, c in seen], dim=2)
            scores = (q[:, row, column].unsqueeze(2) * keys).sum(-1) * (CHANNELS // HEADS) ** -0.5 + bias
            mixed = (scores.softmax(-1).unsqueeze(-1) * values).sum(2)
            out[:, row, column] = layer.attn.proj(mixed.flatten(1))
    return out[:, :height, :width].roll((shift, shift), (1, 2)).permute(0, 3, 1, 2)


def region(place: int, length: int) -> int:
    """After the shift, the last window of a side holds the end of the map and its beginning: they do not mix."""
    return 0 if place < length - 2 else 1


@pytest.mark.parametrize(
    "layer",
    [
        MapAttention(CHANNELS, heads=HEADS),
        WindowAttention(CHANNELS, heads=HEADS, window=4, shifted=True),
    ],
    ids=["all places", "windows"],
)
def test_a_new_layer_is_the_identity_and_learns(layer: nn.Module) -> None:
    maps = layer_maps(6, 6)
    found = layer(maps)
    assert torch.equal(found, maps)
    found.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert any(p.grad is not None and p.grad.any() for p in layer.parameters())
