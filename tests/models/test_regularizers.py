"""models.regularizers: the formulas against explicit softmax, gradients that are there, and maps that do spread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from configs.attention import AttentionConfig, GatesConfig, PenaltyConfig
from configs.base import ConfigError
from models.attention_rows import Rows
from models.gates import use_gates
from models.regularizers import AttentionPenalties, check_penalties, entropy_shortfall
from models.systems import apply_attention

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small_vit(**changes: Any) -> nn.Module:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    return peaked("vit_tiny_patch16_224", **{**args, **changes})


def small_swin() -> nn.Module:
    """Windows of 4 x 4 on maps of 8 x 8, every other block shifted, and of 4 x 4."""
    args = {
        "img_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 1),
        "num_heads": (2, 4),
        "drop_path_rate": 0.0,
    }
    return peaked("swin_tiny_patch4_window7_224", num_classes=5, **args)


def small_cnn(gate: str = "se") -> nn.Module:
    torch.manual_seed(0)
    args = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1], "zero_init_last": False}
    return use_gates(
        timm.create_model("resnet18", num_classes=5, **args), [GatesConfig.model_validate({"name": gate})]
    )


def peaked(name: str, **args: Any) -> nn.Module:
    """The same weights each time; queries and keys so large that attention dwells on few places, others per head."""
    torch.manual_seed(0)
    return sharpen(timm.create_model(name, **args))


def sharpen(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "attn" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return model


NETWORKS = {"vit": small_vit, "swin": small_swin}


def penalty(name: str, **settings: Any) -> PenaltyConfig:
    return PenaltyConfig.model_validate({"name": name, "weight": 1.0, **settings})


def floor(name: str, value: float) -> dict[str, float]:
    return {"floor": value} if name == "entropy" else {}


def cost(model: nn.Module, *penalties: PenaltyConfig, called: Any = None) -> dict[str, Tensor]:
    watch = AttentionPenalties(model, penalties)
    with watch.watching():
        (model if called is None else called)(IMAGES)
    return watch.take()


def explicit_maps(model: nn.Module) -> list[NDArray[np.float64]]:
    """The softmax matrices [B, H, N, N] that timm forms when it does not fuse them, layer by layer."""
    maps: list[NDArray[np.float64]] = []
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
            module.attn_drop.register_forward_hook(
                lambda module, inputs, output: maps.append(inputs[0].detach().double().numpy())
            )
    model(IMAGES)
    return maps


def by_hand(
    maps: list[NDArray[np.float64]], name: str, places: Any = slice(None), floor: float = 0.7
) -> float:
    """The formulas of the module's docstring. A masked key has no share and counts for nothing."""
    values = []
    for attention in maps:
        rows = attention[:, :, places]
        keys = (rows > 1e-30).sum(-1, keepdims=True)
        if name == "uniform":
            value = np.where(rows > 1e-30, np.abs(rows - 1 / keys), 0).sum(-1)
        elif name == "entropy":
            entropy = -(rows * np.log(np.maximum(rows, 1e-300))).sum(-1)
            value = np.maximum(0, floor - entropy / np.log(keys[..., 0]))
        else:
            units = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
            heads = range(rows.shape[1])
            pairs = [(units[:, i] * units[:, j]).sum(-1) for i in heads for j in heads if i != j]
            value = np.stack(pairs)
        values.append(value.mean())
    return float(np.mean(values))


@pytest.mark.parametrize("name", ["uniform", "entropy", "head_diversity"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("fused", ["timm's", "ours"])
def test_a_penalty_is_its_formula_on_the_maps_of_explicit_softmax(
    name: str, network: str, fused: str
) -> None:
    model = NETWORKS[network]()
    if fused == "ours":
        apply_attention(model, AttentionConfig())
    found = cost(model, penalty(name, queries=10_000, **floor(name, 0.7)))[name]
    expected = by_hand(explicit_maps(NETWORKS[network]()), name)
    assert expected > 0.02
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("queries", [1, 5, 16, 17, 18])
def test_some_rows_at_equal_distances_are_looked_at(queries: int) -> None:
    places = np.arange(min(queries, 17)) * 17 // min(queries, 17)
    expected = by_hand(explicit_maps(small_vit()), "uniform", places)
    assert cost(small_vit(), penalty("uniform", queries=queries))["uniform"].item() == pytest.approx(
        expected, rel=1e-4
    )


def test_the_l1_norm_of_softmax_rows_has_no_gradient_and_the_penalties_have() -> None:
    scores = torch.randn(2, 3, 4, 16, dtype=torch.float64, requires_grad=True)
    shares = scores.softmax(-1)
    (trap,) = torch.autograd.grad(shares.abs().sum(), scores)
    assert trap.abs().max() < 1e-15
    model = small_vit()
    for name in ("uniform", "entropy", "head_diversity"):
        model.zero_grad()
        cost(model, penalty(name, **floor(name, 0.9)))[name].backward()
        for block in model.blocks:
            assert block.attn.qkv.weight.grad.norm() > 1e-4, name


@pytest.mark.parametrize("gate", ["se", "eca", "cbam"])
def test_the_penalty_on_gates_is_their_mean_and_has_a_gradient(gate: str) -> None:
    model = small_cnn(gate)
    values: list[Tensor] = []
    for name, module in model.named_modules():
        if name.endswith(".gate"):
            module.register_forward_hook(lambda module, inputs, output: values.append(output.detach()))
    found = cost(model, penalty("gate_l1"))["gate_l1"]
    assert len(values) == (8 if gate == "cbam" else 4)
    assert found.item() == pytest.approx(float(np.mean([value.mean() for value in values])), rel=1e-5)
    found.backward()
    gates = {name: p for name, p in model.named_parameters() if ".se." in name and name.endswith("weight")}
    assert gates and all(p.grad is not None and p.grad.any() for p in gates.values())


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("vit", "uniform"),
        ("vit", "entropy"),
        ("vit", "head_diversity"),
        ("swin", "uniform"),
        ("swin", "entropy"),
    ],
)
def test_maps_do_spread(network: str, name: str) -> None:
    """A few steps on the penalty alone: what it is a measure of changes in the explicit maps."""
    model = NETWORKS[network]()
    measure = "head_diversity" if name == "head_diversity" else "entropy"
    before = by_hand(explicit_maps(NETWORKS[network]()), measure, floor=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    watch = AttentionPenalties(model, [penalty(name, **floor(name, 0.9))])
    for _ in range(40):
        with watch.watching():
            model(IMAGES)
        optimizer.zero_grad()
        watch.weighted(watch.take()).backward()
        optimizer.step()
    after = by_hand(explicit_maps(model), measure, floor=1.0)
    assert after < 0.6 * before, (before, after)


def test_gates_close_under_their_penalty() -> None:
    model = small_cnn()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    watch, history = AttentionPenalties(model, [penalty("gate_l1")]), []
    for _ in range(40):
        with watch.watching():
            model(IMAGES)
        optimizer.zero_grad()
        found = watch.take()
        watch.weighted(found).backward()
        history.append(found["gate_l1"].item())
        optimizer.step()
    assert history[-1] < 0.5 * history[0]


def test_weights_multiply_the_penalties_and_parts_are_without_them() -> None:
    model = small_vit()
    wished = [penalty("uniform", weight=0.5), penalty("entropy", weight=3.0, floor=0.9)]
    watch = AttentionPenalties(model, wished)
    with watch.watching():
        model(IMAGES)
    found = watch.take()
    assert watch.weighted(found).item() == pytest.approx(
        0.5 * found["uniform"].item() + 3 * found["entropy"].item()
    )


def test_activation_checkpointing_and_the_compiler_change_neither_value_nor_gradient() -> None:
    names = ("uniform", "entropy", "head_diversity")
    expected = value_and_gradients(small_vit(), names)
    recomputed = small_vit()
    recomputed.set_grad_checkpointing(True)
    assert value_and_gradients(recomputed, names) == pytest.approx(expected, rel=1e-4)
    torch._dynamo.reset()
    model = small_vit()
    compiled = torch.compile(model, backend="aot_eager")
    assert value_and_gradients(model, names, called=compiled) == pytest.approx(expected, rel=1e-4)


def value_and_gradients(model: nn.Module, names: tuple[str, ...], called: Any = None) -> list[float]:
    watch = AttentionPenalties(model, [penalty(name, **floor(name, 0.9)) for name in names])
    with watch.watching():
        task = (model if called is None else called)(IMAGES).square().sum()
    found = watch.take()
    (task + watch.weighted(found)).backward()
    gradients = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    return [*(value.item() for value in found.values()), *gradients]


def test_under_autocast_rows_are_formed_in_float32() -> None:
    model = small_vit()
    exact = cost(model, penalty("uniform"))["uniform"].item()
    with torch.autocast("cpu", torch.bfloat16):
        found = cost(model, penalty("uniform"))["uniform"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact, rel=0.02)


def test_rows_with_one_key_have_no_entropy_to_lose() -> None:
    rows = Rows(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[True, False]]]]))
    assert entropy_shortfall(rows, floor=1.0) == 0


def test_a_network_that_did_not_train_is_an_error() -> None:
    model = small_vit()
    with pytest.raises(RuntimeError, match="no layer was seen for uniform: the network did not run"):
        cost(model.eval(), penalty("uniform"))
    with pytest.raises(RuntimeError, match="uniform came without a gradient"), torch.no_grad():
        cost(model.train(), penalty("uniform"))


@pytest.mark.parametrize(
    ("build", "names", "said"),
    [
        (lambda: timm.create_model("resnet18"), ["gate_l1"], "'gate_l1' is of gates, and ResNet has none"),
        (
            lambda: small_cnn(),
            ["entropy"],
            "'entropy' is of softmax attention, and ResNet has none",
        ),
        (
            lambda: small_vit(num_heads=1),
            ["head_diversity"],
            "'head_diversity' compares heads, and a layer .* one",
        ),
    ],
)
def test_a_penalty_on_what_is_not_there_is_an_error(build: Any, names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"model.attention.regularize: {said}"):
        check_penalties(build(), [penalty(name) for name in names])


def test_gates_with_heads_have_rows_too() -> None:
    model = sharpen(small_cnn("mhsa"))
    assert cost(model, penalty("uniform"))["uniform"].item() > 0
