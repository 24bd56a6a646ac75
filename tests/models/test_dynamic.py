"""models.dynamic: token merging by a threshold, against a plain loop over images and tokens in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from configs.attention import AttentionConfig, DynamicConfig, TwoStageConfig
from configs.base import ConfigError
from finetune.exporting.onnx_file import write_onnx
from finetune.exporting.torch_program import write_program
from models.activation_memory import peak_activations
from models.attention import use_attend
from models.attention_maps import look
from models.complexity import count_flops, train_flops_per_image
from models.dynamic import DynamicBlock, dynamic_blocks, set_threshold, use_dynamic
from models.features import Features
from models.masked_autoencoder import MaskedAutoencoder
from models.progressive import switched_layers
from models.systems import apply_attention
from models.two_stage import use_two_stage
from tests.support.merged_tokens import reference

TINY: dict[str, Any] = {"img_size": 24, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean of patches": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 3, "init_values": 0.5, "qk_norm": True},
    "pooled by attention": {"global_pool": "map"},
}


def vit(**args: Any) -> Any:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**TINY, **args}).eval()
    for parameter in model.parameters():  # timm's initialisation leaves attention almost uniform
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def dynamic(threshold: float = 0.7, **args: Any) -> Any:
    model = use_dynamic(vit(**args), DynamicConfig(threshold=0.9))
    set_threshold(model, threshold)
    return model


def images(num: int = 4, seed: int = 1) -> Tensor:
    """From plain ones to noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, 3, 24, 24, generator=generator)
    plain = torch.randn(num, 3, 1, 1, generator=generator)
    return plain + noise * torch.linspace(0.01, 1.5, num)[:, None, None, None]


def tokens_left(model: nn.Module) -> list[list[int]]:
    """By image and block."""
    return [list(counts) for counts in zip(*(block.counts for block in dynamic_blocks(model)), strict=True)]


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_the_loop_over_images_and_tokens(network: str, threshold: float) -> None:
    model, pictures = dynamic(threshold, **NETWORKS[network]).double(), images().double()
    expected, counts = reference(vit(**NETWORKS[network]).double(), pictures, threshold)
    logits = model(pictures)
    assert tokens_left(model) == counts
    assert any(after < before for row in counts for before, after in zip([99, *row], row, strict=False))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_gradients_are_those_of_the_loop() -> None:
    model, plain, pictures = dynamic().double(), vit().double(), images().double()
    model(pictures).square().sum().backward()
    reference(plain, pictures, 0.7)[0].square().sum().backward()
    assert tokens_left(model)[0] != tokens_left(model)[-1]
    for (name, got), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("network", NETWORKS)
def test_above_one_nothing_is_merged_and_it_is_the_plain_network_with_its_gradients(network: str) -> None:
    args = {**NETWORKS[network], "drop_path_rate": 0.5, "proj_drop_rate": 0.1}
    plain, model = use_attend(vit(**args)), dynamic(1.01, **args)
    assert list(model.state_dict()) == list(plain.state_dict())
    for mode in (False, True):
        for one in (plain, model):
            torch.manual_seed(0)  # of what is dropped
            one.zero_grad()
            one.train(mode)(images()).square().sum().backward()
        for got, wanted in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.eval()(images()), plain.eval()(images()), rtol=1e-5, atol=1e-5)
    assert tokens_left(model) == [[36 + model.num_prefix_tokens] * 3] * 4


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 7), min_size=1, max_size=4), st.floats(0.3, 0.95))
def test_an_image_comes_out_alike_in_every_company(seed: int, company: list[int], threshold: float) -> None:
    model, pictures = dynamic(threshold).double(), images(8, seed).double()
    with torch.no_grad():
        together = model(pictures[company])
        counts = tokens_left(model)
        for place, image in enumerate(company):
            alone = model(pictures[image : image + 1])
            assert tokens_left(model) == [counts[place]]
            torch.testing.assert_close(together[place : place + 1], alone, rtol=0, atol=1e-10)


def test_a_plain_image_keeps_fewer_tokens_than_a_busy_one_and_prefix_tokens_stay() -> None:
    model = dynamic(0.8, reg_tokens=3)
    model(images())
    last = [row[-1] for row in tokens_left(model)]
    assert last[0] < last[1] <= last[-1]
    set_threshold(model, -1.0)  # everything that can be is merged
    model(torch.zeros(1, 3, 24, 24))
    assert tokens_left(model) == [[4 + 18, 4 + 9, 4 + 4]]


def test_an_image_of_a_single_patch_has_nothing_to_merge() -> None:
    model = dynamic(-1.0, img_size=4)
    model(torch.rand(2, 3, 4, 4))
    assert tokens_left(model) == [[2, 2, 2]] * 2


def test_each_place_of_a_feature_map_has_its_tokens_features() -> None:
    model = dynamic(0.6)
    with torch.no_grad(), Features(model, stages=(0, 1, 2)) as features:
        model(images())
    for found, counts in zip(features.take(), zip(*tokens_left(model), strict=True), strict=True):
        assert found.shape == (4, 24, 6, 6)
        for one, count in zip(found, counts, strict=True):
            assert len(one.flatten(1).T.unique(dim=0)) == count - 1


def test_stochastic_depth_leaves_branches_out_of_whole_images() -> None:
    model = dynamic(0.6, drop_path_rate=0.0).train()
    first: DynamicBlock = model.blocks[0]
    first.drop_path1 = _Dropped()
    seen: list[Any] = []
    first.mlp = nn.Identity()
    first.norm2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    set_threshold(model, 2.0)
    model(images())
    (x_TD,) = seen
    embedded = model._pos_embed(model.patch_embed(images()))
    changed = (x_TD.view_as(embedded) - embedded).abs().amax(dim=2) > 0
    assert changed.all(dim=1).tolist() == [True, False, True, False]
    assert changed.any(dim=1).tolist() == [True, False, True, False]


class _Dropped(nn.Module):
    """Leaves every other image out."""

    def forward(self, factors: Tensor) -> Tensor:
        return factors * (torch.arange(len(factors)) % 2 == 0).to(factors.dtype)[:, None]


def test_in_bf16_the_same_tokens_are_merged_but_for_ties() -> None:
    model = dynamic(0.7)
    with torch.no_grad():
        exact = model(images())
        counts = torch.tensor(tokens_left(model))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images())
    assert (torch.tensor(tokens_left(model)) - counts).abs().max() <= 3
    assert rough.isfinite().all() and (rough - exact).abs().max() < 0.5 * exact.abs().max()


def test_recomputed_in_the_backward_it_merges_the_same_tokens() -> None:
    model = dynamic(0.7).train()
    model(images()).square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing(True)
    model(images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=0, msg=name)


def test_plans_and_counts_are_of_all_tokens_the_most_that_there_can_be() -> None:
    plain, model = use_attend(vit()), dynamic(0.3)
    shape = (3, 24, 24)
    assert count_flops(model, shape) == count_flops(plain, shape)
    assert train_flops_per_image(model, shape) == train_flops_per_image(plain, shape)
    most = (peak_activations(one, (2, *shape), precision="fp32") for one in (plain, model))
    assert next(most) <= next(most)


def test_a_masked_autoencoder_merges_what_it_sees() -> None:
    encoder = use_dynamic(vit(), DynamicConfig(threshold=0.3))
    model = MaskedAutoencoder(encoder, width=16, depth=1, num_heads=2)
    order = torch.rand(4, 36, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    drawn = model(images(), order[:, :12], order[:, 12:])
    assert drawn.shape == (4, 24, 48) and min(map(min, tokens_left(encoder))) < 13
    drawn.square().mean().backward()


@pytest.mark.parametrize("of", ["row", "column_mass", "rollout"])
@pytest.mark.parametrize("network", ["class token", "mean of patches"])
def test_maps_share_what_a_token_has_among_its_places(network: str, of: Any) -> None:
    """Against explicit softmax over tokens, each key counted by its places and its share divided among them."""
    model, pictures = dynamic(0.6, **NETWORKS[network]), images()
    prefix = int(model.num_prefix_tokens)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(
            lambda module, inputs: seen.append(_place_matrix(module, *inputs))
        )
    with torch.no_grad():
        model(pictures)
    matrices, product = list(seen), torch.eye(36 + prefix)
    found = look(model, pictures, layers=(2,), of=of)[0]
    for matrix in matrices:
        product = (matrix + torch.eye(36 + prefix)) / 2 @ product
    rows = {"row": matrices[2], "column_mass": matrices[2], "rollout": product}[of]
    is_class = prefix == 1 and of != "column_mass"
    row = rows[:, 0] if is_class else rows[:, prefix if of != "column_mass" else 0 :].mean(dim=1)
    if of == "row" and not is_class:
        return  # of the mean query, not the mean of rows: tested through the class token
    expected = row[:, prefix:] / row[:, prefix:].sum(dim=1, keepdim=True)
    assert min(block.counts[0] for block in dynamic_blocks(model)) < 30
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-4, atol=1e-5)


def _place_matrix(attention: Any, tokens: Any, pack: Any) -> Tensor:
    """[B, N, N], mean over heads: which share of its attention each place gives to each place."""
    x, sizes, owners = tokens.x_TD, tokens.sizes_T, tokens.owners_BN
    heads = attention.qkv(x).reshape(len(x), 3, attention.num_heads, -1)
    q, k = attention.q_norm.forward(heads[:, 0]), attention.k_norm.forward(heads[:, 1])
    matrices = []
    for places in owners:
        own = places.unique()
        scores = torch.einsum("nhe,mhe->hnm", q[own], k[own]) * attention.scale + sizes[own].log()
        shares = (scores.softmax(dim=2).mean(dim=0) / sizes[own]).to(x.dtype)
        index = torch.searchsorted(own, places)
        matrices.append(shares[index][:, index])
    return torch.stack(matrices)


def test_a_file_of_fixed_shapes_is_refused() -> None:
    for write in (write_onnx, write_program):
        with pytest.raises(
            ConfigError, match=r"fixed shapes, and with .*dynamic the number of tokens follows"
        ):
            write(dynamic(), Path("nowhere"))


def test_with_progressive_activation_a_block_that_is_off_merges_nothing() -> None:
    sections = {"dynamic": {"threshold": 0.6}, "progressive": {"over": "8 steps"}}
    model = apply_attention(vit(), AttentionConfig.model_validate(sections))
    alone = dynamic(0.6)
    torch.testing.assert_close(model(images()), alone(images()))
    assert tokens_left(model) == tokens_left(alone)
    layers = switched_layers(model)
    for layer in layers[1:]:
        layer.set_share(0.0)
    model(images())
    assert all(row[0] == row[1] == row[2] for row in tokens_left(model))
    layers[1].set_share(0.5)
    model(images()).square().sum().backward()
    assert layers[1].attn.qkv.weight.grad.abs().sum() > 0 and layers[2].attn.qkv.weight.grad is None


def test_a_network_whose_tokens_cannot_be_merged_is_an_error_that_says_why() -> None:
    config = DynamicConfig(threshold=0.9)
    with pytest.raises(ConfigError, match=r"dynamic: ResNet has no attention over all tokens .* use a ViT"):
        use_dynamic(timm.create_model("resnet10t"), config)
    with pytest.raises(ConfigError, match=r"0 of 3 blocks are timm's plain ones"):
        use_dynamic(vit(attn_layer="diff"), config)
    with pytest.raises(
        ConfigError, match=r"0 of 3 blocks are timm's plain ones.* model\.attention\.two_stage"
    ):
        use_dynamic(use_two_stage(vit(), TwoStageConfig(window=2, num_global=4)), config)
    with pytest.raises(ConfigError, match=r"leave model.args.attn_drop_rate out"):
        use_dynamic(vit(attn_drop_rate=0.1), config)


def test_a_mask_is_refused() -> None:
    model = dynamic()
    with pytest.raises(ValueError, match="takes no mask"):
        model.forward_features(images(), attn_mask=torch.zeros(37, 37))
