"""models.swin_maps: the explicit softmax of each window, placed token by token."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from configs.base import ConfigError
from models.attention import use_attend
from models.swin_maps import SwinMaps
from tests.support.largest_tensor import LargestTensor

SMALL: dict[str, Any] = {
    "depths": (2, 2),
    "embed_dim": 24,
    "num_heads": (2, 3),
    "num_classes": 5,
    "patch_size": 4,
    "drop_path_rate": 0.0,
}
V1 = "swin_tiny_patch4_window7_224"
V2 = "swinv2_tiny_window8_256"


def build(name: str, *, side: int, window: int, **args: Any) -> Any:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, img_size=side, window_size=window, **{**SMALL, **args}).eval()
    for parameter in model.parameters():  # timm's initialisation leaves attention almost uniform
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def explicit(model: Any, pictures: Tensor) -> list[Tensor]:
    """Softmax matrices [B W, H, n, n] of all blocks, as timm forms them unfused."""
    seen: list[Tensor] = []
    hooks = []
    for layer in model.layers:
        for block in layer.blocks:
            block.attn.fused_attn = False
            hooks.append(block.attn.attn_drop.register_forward_hook(lambda m, i, o: seen.append(o)))
    model(pictures)
    for hook in hooks:
        hook.remove()
    return seen


def placed(matrices: Tensor, block: Any, grid: tuple[int, int]) -> Tensor:
    """Mean over heads and the window's real queries, written to the place where each key came from."""
    (height, width), (rows, columns), (down, across) = grid, block.window_size, block.shift_size
    wide, high = -(-width // columns), -(-height // rows)
    mass = torch.zeros(len(matrices) // (wide * high), height, width)
    for number, matrix in enumerate(matrices.mean(dim=1)):
        picture, window = divmod(number, wide * high)
        corner = (window // wide * rows, window % wide * columns)
        places = [
            (corner[0] + place // columns, corner[1] + place % columns) for place in range(rows * columns)
        ]
        real = [index for index, (row, column) in enumerate(places) if row < height and column < width]
        for index in real:
            row, column = places[index]
            received = matrix[real, index].sum()
            mass[picture, (row + down) % height, (column + across) % width] += received
    return mass / mass.sum(dim=(1, 2), keepdim=True)


@pytest.mark.parametrize("ours", [False, True], ids=["timm", "attend"])
@pytest.mark.parametrize(
    ("name", "side", "window"),
    [(V1, 64, 4), (V1, 72, 5), (V1, 56, 7), (V2, 64, 4), (V2, 72, 5)],
    ids=["v1", "v1 padded", "v1 whole", "v2", "v2 padded"],
)
def test_maps_are_the_explicit_softmax_of_windows_put_together(
    name: str, side: int, window: int, *, ours: bool
) -> None:
    model = build(name, side=side, window=window)
    matrices = explicit(model, images(side))
    blocks = [block for layer in model.layers for block in layer.blocks]
    assert any(any(block.shift_size) for block in blocks)
    model = use_attend(build(name, side=side, window=window)) if ours else model
    with SwinMaps(model, range(4)) as maps, torch.no_grad():
        model(images(side))
    for found, block, matrix in zip(maps.take(), blocks, matrices, strict=True):
        expected = placed(matrix, block, tuple(found.shape[1:]))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert expected.std() > 1e-4  # the comparison sees more than uniform maps


def test_a_v2_without_biases_is_seen_too() -> None:
    model = build(V2, side=32, window=4, qkv_bias=False)
    (matrix, *_) = explicit(model, images(32))
    with SwinMaps(model, (0,)) as maps, torch.no_grad():
        model(images(32))
    torch.testing.assert_close(
        maps.take()[0], placed(matrix, model.layers[0].blocks[0], (8, 8)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", [V1, V2])
def test_looking_keeps_the_logits_and_carries_gradients(name: str) -> None:
    model = build(name, side=32, window=4).train()
    before = model(images(32))
    with SwinMaps(model, (1, -1)) as maps:
        torch.testing.assert_close(model(images(32)), before, rtol=0, atol=0)
    sum(found.square().sum() for found in maps.take()).backward()
    assert model.layers[0].blocks[1].attn.qkv.weight.grad.abs().sum() > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_as_large_as_the_matrix_of_all_places_is_formed() -> None:
    model = use_attend(build(V1, side=64, window=4, patch_size=1, depths=(2,), num_heads=(1,), mlp_ratio=1))
    with SwinMaps(model, (0, 1)) as maps, torch.no_grad(), LargestTensor() as largest:
        model(torch.rand(1, 3, 64, 64))
    assert maps.take()[0].shape == (1, 64, 64)
    assert largest.numel < (64 * 64) ** 2 / 40


def test_what_is_no_swin_or_no_layer_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"ResNet has no windows to show: a Swin of timm is needed"):
        SwinMaps(timm.create_model("resnet10t"))
    with pytest.raises(
        ConfigError, match=r"map of 4 is asked for, but the model has attention in layers 0 \(layers.0.blo"
    ):
        SwinMaps(build(V1, side=32, window=4), (4,))
