"""models.vit_maps: column mass, rollout and rotary positions against explicit softmax matrices."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.attention import TwoStageConfig
from configs.base import ConfigError
from models.activation_memory import PeakMemory
from models.attention import use_attend
from models.attention_maps import look, open_maps
from models.row_sums import row_of, sum_of_rows
from models.two_stage import use_two_stage
from models.vit_maps import AttentionMaps, ColumnMassMaps, RolloutMaps
from tests.support.largest_tensor import LargestTensor

TINY: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}
NETWORKS = {
    "plain": ("vit_tiny_patch16_224", {**TINY, "img_size": 32, "patch_size": 8}),
    "registers": ("vit_small_patch14_reg4_dinov2", {**TINY, "img_size": 42}),
    "gap": ("vit_medium_patch16_reg4_gap_256", {**TINY, "img_size": 48}),
    "dinov3": ("vit_small_patch16_dinov3", {**TINY, "img_size": 48}),
    "rope": ("vit_base_patch16_rope_reg1_gap_256", {**TINY, "img_size": 48}),
    "mixed rope": ("vit_small_patch16_rope_mixed_224", {**TINY, "img_size": 48}),
}
ANY = pytest.mark.parametrize("network", NETWORKS)


def build(network: str) -> Any:
    torch.manual_seed(0)
    name, args = NETWORKS[network]
    model: nn.Module = timm.create_model(name, **args).eval()
    for parameter in model.parameters():  # timm's initialisation leaves attention almost uniform
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def images_of(network: str) -> Tensor:
    side = NETWORKS[network][1]["img_size"]
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def matrices(model: Any, pictures: Tensor) -> list[Tensor]:
    """The softmax matrix [B, H, N, N] of each block, as timm forms it unfused."""
    seen: list[Tensor] = []
    hooks = []
    for block in model.blocks:
        block.attn.fused_attn = False
        hooks.append(
            block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
        )
    model(pictures)
    for hook, block in zip(hooks, model.blocks, strict=True):
        hook.remove()
        block.attn.fused_attn = True
    return seen


def as_map(model: Any, row: Tensor) -> Tensor:
    patches = row[:, model.num_prefix_tokens :]
    return (patches / patches.sum(dim=1, keepdim=True)).reshape(-1, *model.patch_embed.grid_size)


@ANY
def test_the_column_mass_is_the_mean_over_queries_and_heads(network: str) -> None:
    model, pictures = build(network), images_of(network)
    expected = [as_map(model, matrix.mean(dim=(1, 2))) for matrix in matrices(model, pictures)]
    with torch.no_grad(), ColumnMassMaps(use_attend(model), (0, -1)) as maps:
        model(pictures)
    for found, wanted in zip(maps.take(), (expected[0], expected[-1]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@ANY
def test_rollout_is_a_row_of_the_product_of_matrices(network: str) -> None:
    model, pictures = build(network), images_of(network)
    product = torch.eye(matrices(model, pictures)[0].shape[-1]).expand(2, -1, -1)
    expected = []
    for matrix in matrices(model, pictures):
        product = (matrix.mean(dim=1) + torch.eye(matrix.shape[-1])) / 2 @ product
        is_token = model.global_pool == "token"
        row = product[:, 0] if is_token else product[:, model.num_prefix_tokens :].mean(dim=1)
        expected.append(as_map(model, row))
    with torch.no_grad(), RolloutMaps(use_attend(model), (-1, 0)) as maps:
        model(pictures)
    assert maps.names == ("blocks.2.attn", "blocks.0.attn")
    for found, wanted in zip(maps.take(), (expected[-1], expected[0]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", ["dinov3", "mixed rope"])
def test_the_class_row_of_a_network_with_rotary_positions(network: str) -> None:
    model, pictures = build(network), images_of(network)
    expected = [as_map(model, matrix[:, :, 0].mean(dim=1)) for matrix in matrices(model, pictures)]
    with torch.no_grad(), AttentionMaps(model, range(3), query="cls") as maps:
        model(pictures)
    for found, wanted in zip(maps.take(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_gradients_of_the_column_mass_are_those_of_the_explicit_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, bias = (
        torch.randn(2, 3, n, m, generator=generator).requires_grad_() for n, m in [(9, 4), (7, 4), (9, 7)]
    )
    weights = torch.rand(2, 9, generator=generator)
    pushed = torch.randn(2, 7, generator=generator)
    got = sum_of_rows(weights, q, k, scale=0.5, biases=[bias])
    rows = (0.5 * q @ k.transpose(2, 3) + bias).softmax(dim=-1).mean(dim=1)
    wanted = (weights.unsqueeze(2) * rows).sum(dim=1)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        torch.autograd.grad((got * pushed).sum(), (q, k, bias)),
        torch.autograd.grad((wanted * pushed).sum(), (q, k, bias)),
    )


@pytest.mark.parametrize("maps_of", [ColumnMassMaps, RolloutMaps])
def test_no_matrix_is_formed_forward_or_backward(maps_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.row_sums._MOST_SCORES", 1 << 17)
    side = 48
    args = {"img_size": side, "patch_size": 1, "embed_dim": 24, "depth": 1, "num_heads": 1, "mlp_ratio": 1}
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=2, **args)
    tokens = side * side + 1
    with LargestTensor() as largest:
        with maps_of(model) as maps:
            model(torch.rand(1, 3, side, side))
        (found,) = maps.take()
        found.square().sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert largest.numel < tokens**2 / 20


@pytest.mark.parametrize("of", ["row", "column_mass"])
def test_memory_grows_linearly_from_4096_to_16384_tokens(of: str) -> None:
    """Beside the q and k of a ViT-S; explicit maps would take 403 and 6,442 MB."""
    peaks = []
    for tokens in (4096, 16384):
        with FakeTensorMode(), PeakMemory() as peak:
            q, k = (torch.empty(1, 6, tokens, 64) for _ in range(2))
            if of == "row":
                row_of(q[:, :, 0], k, scale=0.125)
            else:
                sum_of_rows(torch.empty(1, tokens), q, k, scale=0.125)
        peaks.append(peak.most_bytes - q.nbytes - k.nbytes)
    assert peaks[1] <= 4.01 * peaks[0]
    assert peaks[1] < (2e6 if of == "row" else 70e6)


def test_two_stage_attention_shows_its_exact_class_row_and_refuses_the_rest() -> None:
    model = build("plain")
    expected = look(model, images_of("plain"), layers=(0,))
    model = use_two_stage(model, TwoStageConfig(window=2, num_global=1))
    torch.testing.assert_close(look(model, images_of("plain"), layers=(0,)), expected)
    for of in ("column_mass", "rollout"):
        with pytest.raises(ConfigError, match=r"which two-stage attention does not have.* ask for the row"):
            open_maps(model, (-1,), of=of)


def test_a_rollout_does_not_pass_through_a_layer_that_did_not_run() -> None:
    skipping = build("plain")
    skipping.blocks[1].forward = lambda tokens: tokens
    with (
        RolloutMaps(skipping),
        pytest.raises(RuntimeError, match=r"no rollout through blocks.1.attn: attention"),
    ):
        skipping(images_of("plain"))


def test_a_rollout_of_a_layer_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match=r"a map of 7 is asked for, but the model has attention in layers 0 \(blocks.0"
    ):
        RolloutMaps(build("plain"), (7,))
