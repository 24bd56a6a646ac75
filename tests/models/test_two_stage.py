"""models.two_stage: the masked softmax it stands for, full attention where it covers all, a cost linear in tokens."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.layers.attention import Attention
from torch import Tensor, nn

from configs.attention import TwoStageConfig
from configs.base import ConfigError
from models.complexity import count_flops
from models.masked_autoencoder import MaskedAutoencoder
from models.two_stage import TwoStageAttention, Windows, attend_in_two_stages, strided_ids, use_two_stage
from tests.support.largest_tensor import LargestTensor

TINY: dict[str, Any] = {"img_size": 40, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def vit(**args: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**TINY, **args}).eval()
    for parameter in model.parameters():  # timm's initialisation leaves attention almost uniform
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def images(side: int = 40) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def allowed(grid: tuple[int, int], window: int, chosen: list[int], prefix: int) -> Tensor:
    """Who may look at whom, written down token by token."""
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    total = prefix + len(places)
    matrix = torch.zeros(total, total, dtype=torch.bool)
    matrix[:prefix] = True
    matrix[:, :prefix] = True
    for query, (row, column) in enumerate(places):
        for key, (other_row, other_column) in enumerate(places):
            near = row // window == other_row // window and column // window == other_column // window
            matrix[prefix + query, prefix + key] = near or key in chosen
    return matrix


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("grid", "window", "num_global"),
    [((4, 4), 2, 4), ((5, 7), 2, 4), ((5, 7), 3, 9), ((6, 4), 5, 1), ((4, 6), 1, 16), ((3, 3), 9, 4)],
)
def test_it_is_the_softmax_over_window_subset_and_prefix(
    grid: tuple[int, int], window: int, num_global: int, prefix: int
) -> None:
    generator = torch.Generator().manual_seed(grid[1] + window)
    shape = (2, 3, prefix + math.prod(grid), 8)
    inputs = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3)]
    per_image = torch.stack(
        [torch.randperm(math.prod(grid), generator=generator)[:num_global] for _ in range(2)]
    )
    for ids in (strided_ids(grid, num_global, torch.device("cpu")), per_image):
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        mixed = attend_in_two_stages(q, k, v, ids, Windows.of(grid, window))
        masks = [allowed(grid, window, row.tolist(), prefix) for row in ids]
        scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(~torch.stack(masks)[:, None], -math.inf)
        expected = scores.softmax(dim=-1) @ v
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)
        weights = torch.randn(shape, dtype=torch.float64, generator=generator)
        got = torch.autograd.grad((mixed * weights).sum(), (q, k, v))
        wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("subset", ["strided", "selected"])
@pytest.mark.parametrize(("window", "num_global"), [(10, 1), (64, 4), (3, 100), (4, 400)])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_a_window_or_a_subset_of_all_tokens_is_full_attention(
    name: str, window: int, num_global: int, subset: Any
) -> None:
    torch.manual_seed(0)
    full = timm.create_model(name, num_classes=5, **TINY).eval()
    config = TwoStageConfig(window=window, num_global=num_global, subset=subset)
    staged = use_two_stage(copy.deepcopy(full), config)
    logits, expected = staged(images()), full(images())
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for got, wanted in zip(staged.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-5)


def test_it_differs_from_full_attention_where_it_does_not_cover_all() -> None:
    full = vit()
    staged = use_two_stage(copy.deepcopy(full), TwoStageConfig(window=2, num_global=4))
    assert (staged(images()) - full(images())).abs().max() > 1e-3


def test_released_weights_fit_as_they_are() -> None:
    full = vit()
    staged = use_two_stage(vit(), TwoStageConfig())
    assert list(staged.state_dict()) == list(full.state_dict())
    staged.load_state_dict(full.state_dict(), strict=True)
    assert all(isinstance(block.attn, TwoStageAttention) for block in staged.blocks)


@pytest.mark.parametrize("subset", ["strided", "selected"])
def test_operations_grow_linearly_and_nothing_as_large_as_the_matrix_is_formed(subset: Any) -> None:
    flops, largest = [], []
    for side in (32, 64):
        model = vit(img_size=side, patch_size=1, depth=1)
        use_two_stage(model, TwoStageConfig(window=4, num_global=16, subset=subset))
        flops.append(count_flops(model, (3, side, side)))
        with torch.no_grad(), LargestTensor() as seen:
            model(torch.rand(1, 3, side, side))
        largest.append(seen.numel)
    assert flops[1] / flops[0] == pytest.approx(4.0, rel=0.02)
    assert largest[1] / largest[0] == pytest.approx(4.0, rel=0.02)
    assert largest[1] < 64**4 / 20
    assert count_flops(vit(img_size=64, patch_size=1, depth=1), (3, 64, 64)) > 4 * flops[1]


@pytest.mark.parametrize(
    ("args", "first_patch"), [({}, 1), ({"class_token": False, "global_pool": "avg"}, 0)]
)
def test_the_selected_tokens_are_those_that_the_pooled_query_attends_to_most(
    args: dict[str, Any], first_patch: int
) -> None:
    model: Any = use_two_stage(vit(**args), TwoStageConfig(num_global=7, subset="selected"))
    attention = model.blocks[0].attn
    tokens = torch.randn(3, 100 + first_patch, 24, generator=torch.Generator().manual_seed(2))
    qkv = attention.qkv(tokens).reshape(3, -1, 3, 2, 12).permute(2, 0, 3, 1, 4)
    query = qkv[0][:, :, :1] if first_patch else qkv[0].mean(dim=2, keepdim=True)
    row = (query @ qkv[1][:, :, first_patch:].transpose(2, 3) / 12**0.5).softmax(dim=-1).mean(dim=(1, 2))
    ids = attention._global_ids(qkv[0], qkv[1], (10, 10))
    for found, scores in zip(ids, row, strict=True):
        assert set(found.tolist()) == set(scores.argsort(descending=True)[:7].tolist())


def test_a_strided_subset_lies_in_the_middle_of_equal_parts() -> None:
    lattice = strided_ids((14, 14), 49, torch.device("cpu"))
    rows = sorted({int(token) // 14 for token in lattice[0]})
    assert rows == [1, 3, 5, 7, 9, 11, 13] and lattice.shape == (1, 49)
    assert strided_ids((2, 5), 16, torch.device("cpu")).shape == (1, 2 * 4)


def test_the_grid_follows_images_of_other_sizes() -> None:
    model = use_two_stage(vit(dynamic_img_size=True), TwoStageConfig(window=99))
    full = vit(dynamic_img_size=True)
    pictures = torch.randn(1, 3, 24, 48)
    torch.testing.assert_close(model(pictures), full(pictures), rtol=0, atol=1e-5)


@pytest.mark.parametrize("subset", ["strided", "selected"])
def test_checkpointed_compiled_and_copied_it_computes_the_same(subset: Any) -> None:
    model: Any = use_two_stage(vit(), TwoStageConfig(window=3, num_global=4, subset=subset))
    model(images()).square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    copied = copy.deepcopy(model)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing(True)
    for other in (copied, compiled, checkpointed):
        other.zero_grad()
        other(images()).square().sum().backward()
        found = {name.removeprefix("_orig_mod."): value.grad for name, value in other.named_parameters()}
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_go_in_two_stages_is_an_error_that_says_why() -> None:
    config = TwoStageConfig()
    with pytest.raises(
        ConfigError, match=r"two_stage: ResNet has no attention over all tokens .* use a ViT of timm"
    ):
        use_two_stage(timm.create_model("resnet10t"), config)
    with pytest.raises(ConfigError, match=r"0 of 2 blocks have timm's plain attention"):
        use_two_stage(vit(attn_layer="diff"), config)
    with pytest.raises(
        ConfigError, match=r"leave model.args.attn_drop_rate and model.args.patch_drop_rate out"
    ):
        use_two_stage(vit(attn_drop_rate=0.1, patch_drop_rate=0.2), config)


def test_an_objective_that_leaves_tokens_out_is_an_error() -> None:
    encoder = use_two_stage(vit(), TwoStageConfig())
    model = MaskedAutoencoder(encoder, width=16, depth=1, num_heads=2)
    order = torch.rand(2, 100).argsort(dim=1)
    with pytest.raises(ConfigError, match=r"two_stage: 25 patch tokens do not fill the model's grid"):
        model(images(), order[:, :25], order[:, 25:])


def test_a_mask_is_refused() -> None:
    model: Any = use_two_stage(vit(), TwoStageConfig())
    with pytest.raises(ValueError, match="takes no mask"):
        model.blocks[0].attn(torch.zeros(1, 101, 24), attn_mask=torch.zeros(101, 101))


def test_a_strided_subset_of_no_square_number_names_those_nearby() -> None:
    with pytest.raises(
        ValidationError, match=r"num_global 50 is no square number.*use 49 or 64, or subset: selected"
    ):
        TwoStageConfig(num_global=50)
    assert TwoStageConfig(num_global=50, subset="selected").num_global == 50


def test_timm_blocks_are_plain_attention_before() -> None:
    assert type(vit().blocks[0].attn) is Attention
