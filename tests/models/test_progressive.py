"""models.progressive: when layers come in, what they compute, and that what is off is not computed."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from configs.attention import AttentionConfig, GatesConfig, ProgressiveConfig
from configs.base import ConfigError
from models.gates import use_gates
from models.progressive import Activation, AttentionSwitches, Switched, switched_layers, use_progressive
from models.systems import apply_attention

CONFIG = ProgressiveConfig.model_validate({"over": "8 steps"})


def small_vit(**changes: Any) -> nn.Module:
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    return built("vit_tiny_patch16_224", **{**args, **changes})


def small_swin(name: str = "swin_tiny_patch4_window7_224", **changes: Any) -> nn.Module:
    args = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2)}
    return built(name, **{**args, "num_heads": (2, 4), "num_classes": 5, **changes})


def small_cnn() -> nn.Module:
    model = built(
        "resnet18", num_classes=5, channels=[8, 8, 16, 16], layers=[1, 1, 1, 1], zero_init_last=False
    )
    return use_gates(model, [GatesConfig(name="cbam")])


def built(name: str, **args: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **args)
    return model


NETWORKS = {
    "vit": small_vit,
    "vit with layer scale": lambda: small_vit(init_values=0.5, global_pool="avg", class_token=False),
    "swin": small_swin,
    "swin v2": lambda: small_swin("swinv2_tiny_window8_256"),
    "cbam": small_cnn,
    "efficientnet": lambda: built("efficientnet_b0", num_classes=5),
}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def images_for(name: str) -> Tensor:
    return IMAGES[..., :16, :16] if name.startswith("vit") else IMAGES


@settings(deadline=None)
@given(
    over=st.integers(1, 1000),
    fade=st.none() | st.integers(0, 1000),
    num_layers=st.integers(1, 24),
    start=st.integers(0, 23),
    step=st.integers(0, 1100),
)
def test_shares_grow_from_the_input_on_and_end_at_one(
    over: int, fade: int | None, num_layers: int, start: int, step: int
) -> None:
    start = min(start, num_layers - 1)
    plan = Activation(over_steps=over, fade_steps=None if fade is None else min(fade, over), start=start)
    shares, later = (plan.shares(at, num_layers=num_layers) for at in (step, step + 1))
    assert len(shares) == num_layers
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert all(low >= high for low, high in pairwise(shares)), "low layers come first"
    assert all(now <= then + 1e-9 for now, then in zip(shares, later, strict=True))
    assert plan.shares(0, num_layers=num_layers)[:start] == [1.0] * start
    if fade != 0:
        assert not any(plan.shares(0, num_layers=num_layers)[start:])
    assert plan.shares(over, num_layers=num_layers) == [1.0] * num_layers


def test_without_a_fade_layers_follow_each_other_without_a_gap() -> None:
    plan = Activation(over_steps=30, fade_steps=None, start=1)
    found = [plan.shares(step, num_layers=3) for step in (0, 10, 15, 20, 25, 30)]
    assert found == [[1, 0, 0], [1, 0, 0], [1, 0.5, 0], [1, 1, 0], [1, 1, 0.5], [1, 1, 1]]


def test_with_a_fade_the_last_layer_is_all_there_in_the_end() -> None:
    plan = Activation(over_steps=30, fade_steps=10, start=0)
    found = [plan.shares(step, num_layers=2) for step in (0, 10, 15, 20, 25, 29, 30)]
    assert found == [[0, 0], [0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 0.9], [1, 1]]


@pytest.mark.parametrize("name", NETWORKS)
def test_all_on_it_is_the_plain_network_bit_by_bit_with_the_same_names(name: str) -> None:
    plain = NETWORKS[name]()
    switched = use_progressive(copy.deepcopy(plain), CONFIG)
    assert list(switched.state_dict()) == list(plain.state_dict())
    images = images_for(name)
    for mode in (False, True):
        torch.manual_seed(0)
        expected = plain.train(mode)(images)
        torch.manual_seed(0)
        torch.testing.assert_close(switched.train(mode)(images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "vit with layer scale", "swin", "swin v2"])
def test_a_block_that_is_off_is_its_mlp_alone(name: str) -> None:
    model = use_progressive(NETWORKS[name](), CONFIG).eval()
    block: Any = switched_layers(model)[0]
    block.set_share(0.0)
    block.attn.register_forward_pre_hook(_never)
    block.norm1.register_forward_pre_hook(_never) if name != "swin v2" else None
    seen: list[tuple[Tensor, Tensor]] = []
    block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model(images_for(name))
    ((x, found),) = seen
    if name == "swin v2":
        expected = x + block.norm2(block.mlp(x))
    else:
        branch = block.mlp(block.norm2(x))
        expected = x + (block.ls2(branch) if "vit" in name else branch)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["cbam", "efficientnet"])
def test_a_gate_that_is_off_is_the_identity_and_its_parts_do_not_run(name: str) -> None:
    model = use_progressive(NETWORKS[name](), CONFIG).eval()
    gate = switched_layers(model)[-1]
    gate.set_share(0.0)
    for part in gate.children():
        part.register_forward_pre_hook(_never)
    seen: list[bool] = []
    gate.register_forward_hook(lambda module, inputs, output: seen.append(output is inputs[0]))
    model(images_for(name))
    assert seen == [True]


def test_what_is_off_costs_no_operation() -> None:
    model = use_progressive(small_vit(), CONFIG)
    width, tokens, layers = 24, 17, switched_layers(model)
    counts = []
    for num_on in (3, 2, 0):
        for index, layer in enumerate(layers):
            layer.set_share(float(index < num_on))
        counter = FlopCounterMode(display=False)
        with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            model(IMAGES[..., :16, :16])
        counts.append(counter.get_total_flops())
    # Two images; qkv and the projection are 4 matrices, scores and mixing 2 products; a multiply-add counts as two.
    attention = 2 * 2 * (tokens * 4 * width**2 + 2 * tokens**2 * width)
    assert [counts[0] - counts[1], counts[1] - counts[2]] == [attention, 2 * attention]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_comes_in_without_a_jump(name: str) -> None:
    """What the last layer puts out begins, as its share grows, at what it is without the attention."""
    model = use_progressive(NETWORKS[name](), CONFIG).eval()
    last: Any = switched_layers(model)[-1]
    if name == "swin v2":
        nn.init.ones_(last.norm1.weight)  # begins at 0
    seen: list[Tensor] = []
    last.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    shares = (0.0, 1e-4, 0.5, 1.0)
    for share in shares:
        last.set_share(share)
        model(images_for(name))
    off, first, _, on = seen
    assert not torch.equal(off, on)
    if name in (
        "cbam",
        "efficientnet",
    ):  # behind the attention of a block stands its MLP, which is not straight
        torch.testing.assert_close(seen[2], (off + on) / 2)
    scale = (on - off).abs().max().item()
    assert 0 < (first - off).abs().max().item() < 1e-3 * scale


def _never(module: nn.Module, inputs: Any) -> None:
    raise AssertionError(f"{type(module).__name__} ran")


def test_switches_follow_the_step_alone() -> None:
    model = use_progressive(small_vit(), CONFIG)
    switches = AttentionSwitches(model, Activation(over_steps=30, fade_steps=None, start=1))
    shares = {}
    for step in (0, 15, 29, 5, 15, 30, 0):
        switches.follow(step)
        found = [float(layer.share) for layer in switched_layers(model)]
        assert found == pytest.approx(switches.shares(step))
        assert [layer.is_on for layer in switched_layers(model)] == [share > 0 for share in found]
        assert shares.setdefault(step, found) == found


def test_what_is_off_has_no_gradient_and_the_rest_has() -> None:
    model = use_progressive(small_vit(), CONFIG)
    switched_layers(model)[2].set_share(0.0)
    model(IMAGES[..., :16, :16]).square().sum().backward()
    silent = {name.rsplit(".", 2)[0] for name, p in model.named_parameters() if p.grad is None}
    assert silent == {"blocks.2", "blocks.2.attn"}


def test_activation_checkpointing_and_the_compiler_change_nothing() -> None:
    model = use_progressive(small_vit(), CONFIG)
    images = IMAGES[..., :16, :16]
    switches = AttentionSwitches(model, Activation(over_steps=30, fade_steps=10, start=1))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for step in (0, 14, 30):
        switches.follow(step)
        expected = gradients(model, model, images)
        assert gradients(model, compiled, images) == pytest.approx(expected, rel=1e-4)
        model.set_grad_checkpointing(True)
        assert gradients(model, model, images) == pytest.approx(expected, rel=1e-5)
        model.set_grad_checkpointing(False)


def gradients(model: nn.Module, called: Any, images: Tensor) -> list[float]:
    model.zero_grad()
    called(images).square().sum().backward()
    return [0.0 if p.grad is None else float(p.grad.norm()) for p in model.parameters()]


def test_a_network_without_attention_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"ResNet has no attention that can be switched; the blocks of timm's ViT"
    ):
        use_progressive(built("resnet18"), CONFIG)


def test_nothing_left_to_switch_on_is_an_error() -> None:
    config = ProgressiveConfig.model_validate({"over": "8 steps", "start": 3})
    with pytest.raises(
        ConfigError, match=r"start is 3, but the network has 3 layers with attention: at most 2"
    ):
        use_progressive(small_vit(), config)


def test_it_goes_with_gates_and_windows_in_one_network() -> None:
    sections = {
        "gates": {"name": "shifted_window", "stages": [2, 3], "window": 3},
        "progressive": {"over": "1 epoch"},
    }
    config = AttentionConfig.model_validate(sections)
    model = built("resnet18", num_classes=5, channels=[8, 8, 16, 16], layers=[1, 2, 2, 1])
    apply_attention(model, config)
    assert [isinstance(module, Switched) for module in (model.layer2[0].se, model.layer3[1].se)] == [
        True,
        True,
    ]
    assert len(switched_layers(model)) == 4
