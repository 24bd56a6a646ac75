"""models.attention_maps: maps equal those of explicit softmax attention, and nothing is found in silence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.models import MlpMixer
from torch import Tensor, nn

from configs.base import ConfigError
from models.attention import use_attend
from models.attention_maps import look, open_attention, open_maps
from models.energy_maps import EnergyMaps, stage_names
from models.gate_maps import GateMaps
from models.swin_maps import SwinMaps
from models.vit_maps import AttentionMaps
from tests.support.largest_tensor import LargestTensor

PLAIN = (
    "vit_tiny_patch16_224",
    {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
)
REGISTERS = ("vit_small_patch14_reg4_dinov2", {"img_size": 42, "embed_dim": 48, "depth": 3, "num_heads": 3})
HYBRID = (
    "vit_tiny_r_s16_p8_224",
    {"img_size": 28, "patch_size": 1, "embed_dim": 48, "depth": 3, "num_heads": 3, "in_chans": 1},
)
GAP = ("vit_medium_patch16_reg4_gap_256", {"img_size": 48, "embed_dim": 48, "depth": 3, "num_heads": 3})
QK_NORM = (PLAIN[0], {**PLAIN[1], "qk_norm": True})
VITS = pytest.mark.parametrize(
    ("name", "args"),
    [PLAIN, REGISTERS, HYBRID, GAP, QK_NORM],
    ids=["plain", "registers", "hybrid", "gap", "qk_norm"],
)


def build(name: str, args: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **args).eval()
    for parameter in model.parameters():  # timm's initialisation leaves attention almost uniform
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def images_for(args: dict[str, Any], batch: int = 2) -> Tensor:
    size = args.get("img_size", 64)
    return torch.randn(batch, args.get("in_chans", 3), size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def explicit_attention(model: Any, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each block: the full softmax matrix timm forms with fused attention off, and the q and k it comes from."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    hooks = []
    for block in model.blocks:
        block.attn.fused_attn = False
        qk: dict[str, Tensor] = {}
        hooks += [
            block.attn.q_norm.register_forward_hook(lambda m, i, o, qk=qk: qk.update(q=o)),
            block.attn.k_norm.register_forward_hook(lambda m, i, o, qk=qk: qk.update(k=o)),
            block.attn.attn_drop.register_forward_hook(
                lambda m, i, o, qk=qk: seen.append((o, qk["q"], qk["k"]))
            ),
        ]
    model(images)
    for hook in hooks:
        hook.remove()
    for block in model.blocks:
        block.attn.fused_attn = True
    return seen


def expected_map(model: Any, matrix: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    attention, q, k = matrix
    prefix = model.num_prefix_tokens
    if model.global_pool == "token":
        row = attention[:, :, 0].mean(1)
    else:
        query = q[:, :, prefix:].mean(2, keepdim=True)
        row = torch.softmax(query @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)[:, :, 0].mean(1)
    patches = row[:, prefix:]
    return (patches / patches.sum(1, keepdim=True)).reshape(-1, *model.patch_embed.grid_size)


@VITS
@pytest.mark.parametrize("ours", [False, True], ids=["timm", "attend"])
def test_maps_equal_explicit_softmax_with_the_fused_kernel_on(
    name: str, args: dict[str, Any], ours: bool
) -> None:
    model = build(name, args)
    images = images_for(args)
    expected = [expected_map(model, matrix) for matrix in explicit_attention(model, images)]
    model = use_attend(model) if ours else model
    with AttentionMaps(model, layers=(0, 1, -1)) as maps, torch.no_grad():
        model(images)
    for got, want in zip(maps.take(), expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        torch.testing.assert_close(got.sum(dim=(1, 2)), torch.ones(2))
    assert expected[0].std() > 1e-3  # the comparison sees more than uniform maps


@VITS
def test_looking_does_not_change_the_logits_and_leaves_no_hook(name: str, args: dict[str, Any]) -> None:
    model = build(name, args)
    before = model(images_for(args))
    with AttentionMaps(model, layers=range(3)):
        torch.testing.assert_close(model(images_for(args)), before, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_grid_that_follows_the_image_is_recognised() -> None:
    name, args = PLAIN
    model = build(name, {**args, "dynamic_img_size": True})
    with AttentionMaps(model) as maps, torch.no_grad():
        model(torch.rand(1, 3, 24, 48))
    assert maps.take()[0].shape == (1, 3, 6)


def test_maps_carry_gradients_and_stay_float32_under_autocast() -> None:
    model = build(*PLAIN).train()
    with AttentionMaps(model) as maps, torch.autocast("cpu", torch.bfloat16):
        model(images_for(PLAIN[1]))
    (last,) = maps.take()
    assert last.dtype == torch.float32
    last.square().sum().backward()
    assert model.blocks[-1].attn.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["nf_seresnet26", "resnet10t", "test_efficientnet", "regnetx_002"])
def test_energy_is_the_mean_square_over_channels_of_each_stage(name: str) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad(), EnergyMaps(model, stages=(-2, -1)) as maps:
        model(images)
        features = model.forward_intermediates(images, indices=[-2, -1], intermediates_only=True)
    for got, feature in zip(maps.take(), features, strict=True):
        torch.testing.assert_close(got, (feature**2).mean(1))


def test_energy_of_swin_sums_its_last_axis() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1), embed_dim=24, num_heads=(2, 2)
    )
    with torch.no_grad(), EnergyMaps(model, stages=(0,)) as maps:
        model.eval()(torch.rand(1, 3, 56, 56))
    assert maps.take()[0].shape == (1, 14, 14)


@pytest.mark.parametrize(
    "make",
    [
        partial(timm.create_model, "vit_tiny_patch16_224", depth=2, num_heads=3, reg_tokens=2),
        partial(timm.create_model, "cait_xxs24_224", depth=2, num_heads=3),
        partial(MlpMixer, num_blocks=2),
    ],
    ids=["ViT", "CaiT", "Mixer"],
)
def test_energy_of_tokens_is_in_their_rows_and_columns(make: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = make(img_size=32, patch_size=8, embed_dim=24, num_classes=3)
    blocks: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda _module, _inputs, output: blocks.append(output))
    with torch.no_grad(), EnergyMaps(model.eval(), stages=(0,)) as maps:
        model(torch.rand(2, 3, 32, 32))
    expected = blocks[0][:, -16:].square().mean(dim=2).view(2, 4, 4)
    torch.testing.assert_close(maps.take()[0], expected)


def test_tokens_whose_rows_and_columns_are_unknown_are_refused() -> None:
    model = timm.create_model("xcit_nano_12_p16_224", embed_dim=24, depth=1, num_heads=3).eval()
    with (
        torch.no_grad(),
        EnergyMaps(model) as maps,
        pytest.raises(ConfigError, match="does not say in which rows"),
    ):
        model(torch.rand(1, 3, 32, 32))
    del maps


def test_a_stage_is_found_by_name_too() -> None:
    model = timm.create_model("nf_seresnet26")
    assert stage_names(model) == ("stem.conv", "stages.0", "stages.1", "stages.2", "stages.3")
    assert EnergyMaps(model, stages=("stages.2",)).names == ("stages.2",)


def test_open_maps_takes_what_the_network_has() -> None:
    assert isinstance(open_maps(build(*PLAIN), (-1,)), AttentionMaps)
    assert isinstance(open_maps(timm.create_model("resnet10t"), (-1,)), EnergyMaps)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1))
    assert isinstance(open_attention(swin, (-1,)), SwinMaps)


@pytest.mark.parametrize("layer", ["cbam", "lcbam", "gc"])
def test_gate_maps_are_the_factors_that_multiply_places(layer: str) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("resnet18", block_args={"attn_layer": layer}, zero_init_last=False).eval()
    gated: Any = model.layer2[0].se
    seen: list[tuple[Tensor, Tensor]] = []
    gated = gated.spatial if "cbam" in layer else gated
    gated.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output.clone())))
    with torch.no_grad(), GateMaps(model, (2,)) as maps:
        model(torch.rand(2, 3, 64, 64))
    (found,), (before, after) = maps.take(), seen[0]
    if layer == "gc":
        logits = (
            torch.einsum("bchw,c->bhw", before, gated.conv_attn.weight[0, :, 0, 0]) + gated.conv_attn.bias
        )
        expected = logits.flatten(1).softmax(dim=1).view_as(logits)
    else:
        expected = ((after * before).sum(dim=1) / before.square().sum(dim=1)).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "args", "kinds"),
    [
        (*PLAIN, {"row": (8, 8), "column_mass": (8, 8), "rollout": (8, 8)}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 56, "depths": (1, 1)},
            {"column_mass": (7, 7), "energy": (7, 7)},
        ),
        ("resnet10t", {}, {"energy": (2, 2)}),
    ],
)
def test_one_call_looks_with_any_network_and_leaves_it_as_it_was(
    name: str, args: dict[str, Any], kinds: dict[Any, tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=3, **args).train()
    frozen = next(model.children()).eval()
    images = torch.rand(2, 3, args.get("img_size", 64), args.get("img_size", 64))
    (first,) = look(model, images)
    for of, grid in kinds.items():
        patch = args.get("patch_size")
        (found,) = look(model, images, of=of)
        assert (
            found.shape == (2, *((32 // patch, 32 // patch) if patch else grid)) and not found.requires_grad
        )
    torch.testing.assert_close(first, look(model, images, of=next(iter(kinds)))[0])
    assert model.training and not frozen.training
    assert not any(module._forward_hooks for module in model.modules())


def test_what_does_not_exist_is_an_error_that_lists_what_does() -> None:
    vit, cnn = build(*PLAIN), timm.create_model("resnet10t")
    with pytest.raises(
        ConfigError, match=r"map of 3 is asked for, .* 0 \(blocks.0.attn\), 1 \(blocks.1.attn\), 2 \(blocks.2"
    ):
        AttentionMaps(vit, layers=(3,))
    with pytest.raises(ConfigError, match="map of -4 is asked for"):
        AttentionMaps(vit, layers=(-4,))
    with pytest.raises(
        ConfigError, match=r"ResNet has no attention row to show: .*stages \(act1, layer1, .*layer4\)"
    ):
        AttentionMaps(cnn)
    with pytest.raises(ConfigError, match=r"map of 'layer9' is asked for, .* stages 0 \(act1\)"):
        EnergyMaps(cnn, stages=("layer9",))
    with pytest.raises(ConfigError, match="no map is asked for"):
        EnergyMaps(cnn, stages=())
    with pytest.raises(ConfigError, match=r"ResNet has no map of 'rollout'; it may have 'energy', 'gate'"):
        open_maps(cnn, (-1,), of="rollout")
    with pytest.raises(
        ConfigError, match=r"ResNet has no gate over places .* stages \(act1, .*\) have energy maps"
    ):
        open_maps(cnn, (-1,), of="gate")
    with pytest.raises(ConfigError, match="but the model has none: use query 'mean'"):
        AttentionMaps(build(*GAP), query="cls")


@pytest.mark.parametrize("query", ["cls", "mean"])
def test_no_operation_forms_anything_as_large_as_the_attention_matrix(query: Any) -> None:
    side, width = 48, 24
    args = {"img_size": side, "patch_size": 1, "embed_dim": width, "depth": 1, "num_heads": 1, "mlp_ratio": 1}
    model = build(PLAIN[0], args)
    num_tokens = side * side + 1
    with torch.no_grad(), AttentionMaps(model, query=query) as maps, LargestTensor() as largest:
        model(torch.rand(1, 3, side, side))
    assert maps.take()[0].shape == (1, side, side)
    assert largest.numel <= 4 * num_tokens * width < num_tokens**2 / 20


def test_maps_of_no_forward_are_an_error() -> None:
    with AttentionMaps(build(*PLAIN)) as maps:
        pass
    with pytest.raises(RuntimeError, match=r"no map of blocks.2.attn: the layer did not run"):
        maps.take()
