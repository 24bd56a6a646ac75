"""models.swin_attention: Swin on fused attention is timm's unfused Swin, forward and backward, however it is run."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from models.attention import attend, use_attend
from models.swin_attention import SwinAttention, SwinV2Attention

TOLERANCE = 1e-5
"""Of outputs, and of gradients relative to the largest of their tensor."""

KINDS = {
    "v1": ("swin_tiny_patch4_window7_224", {"window_size": 4}),
    "v1 with a cut grid": ("swin_tiny_patch4_window7_224", {"window_size": 3}),
    "v1, masks made for each image": (
        "swin_tiny_patch4_window7_224",
        {"window_size": 3, "strict_img_size": False},
    ),
    "v2": ("swinv2_tiny_window8_256", {"window_size": 4}),
    "v2 with biases apart": ("swinv2_tiny_window8_256", {"window_size": 3, "qkv_bias": True}),
    "v2 without biases": ("swinv2_tiny_window8_256", {"window_size": 4, "qkv_bias": False}),
}


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of these small networks are as if they outgrew it."""
    monkeypatch.setattr("models.attention._CACHED_BYTES", 0)


def swin(kind: str, **more: object) -> nn.Module:
    """Two stages, plain and shifted windows, all of whose weights matter (v2 begins with norms of zero)."""
    name, args = KINDS[kind]
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    model: nn.Module = timm.create_model(
        name, **{"num_classes": 5, "drop_path_rate": 0.0, **sizes, **args, **more}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def outputs_and_gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of a loss that all of them are part of."""
    model.zero_grad()
    logits: Tensor = model(images)
    logits.square().mean().backward()
    return logits.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_same(model: nn.Module, other: nn.Module, images: Tensor) -> None:
    expected, wanted = outputs_and_gradients(model, images)
    out, gradients = outputs_and_gradients(other, images)
    torch.testing.assert_close(out, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        largest = wanted[name].abs().max().item()
        assert (gradient - wanted[name]).abs().max() <= TOLERANCE * largest + 1e-9, name
    assert all(wanted[name].abs().max() > 0 for name in wanted if "position" in name or "cpb" in name)


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "math"])
@pytest.mark.parametrize("kind", KINDS)
def test_swin_on_attend_is_timms_unfused_swin(kind: str, kernel: str) -> None:
    model = swin(kind)
    fused = use_attend(copy.deepcopy(model), kernel)  # type: ignore[arg-type]
    layers = [m for m in fused.modules() if isinstance(m, SwinAttention | SwinV2Attention)]
    assert len(layers) == 4 and list(fused.state_dict()) == list(model.state_dict())
    assert_same(model, fused, torch.rand(3, 3, 32, 32))
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(fused.eval()(images), model.eval()(images), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_without_masks_it_is_softmax_by_the_papers_formula(kind: str) -> None:
    model = use_attend(swin(kind)).double()
    layer = next(m for m in model.modules() if isinstance(m, SwinAttention | SwinV2Attention))
    x = torch.randn(4, 16, 16, dtype=torch.float64)
    mixed = torch.zeros(4, 16, 16, dtype=torch.float64)
    if kind == "v1":
        qkv = layer.qkv(x)
    else:
        bias_of_qkv = torch.cat([layer.q_bias, torch.zeros(16, dtype=torch.float64), layer.v_bias])
        qkv = x @ layer.qkv.weight.T + bias_of_qkv
    q, k, v = qkv.view(4, 16, 3, 2, 8).unbind(2)
    table = layer.relative_position_bias_table if kind == "v1" else layer.cpb_mlp(layer.relative_coords_table)
    for i in range(16):
        for head in range(2):
            offsets = [(i // 4 - j // 4 + 3) * 7 + (i % 4 - j % 4 + 3) for j in range(16)]
            bias = table.reshape(49, 2)[offsets, head]
            if kind == "v1":
                scores = (k[:, :, head] * q[:, i : i + 1, head]).sum(-1) / 8**0.5 + bias
            else:
                cosines = nn.functional.cosine_similarity(k[:, :, head], q[:, i : i + 1, head], dim=-1)
                scores = cosines * layer.logit_scale[head, 0, 0].exp().clamp(max=100) + 16 * bias.sigmoid()
            row = scores.softmax(-1).unsqueeze(-1) * v[:, :, head]
            mixed[:, i, head * 8 : head * 8 + 8] = row.sum(1).detach()
    torch.testing.assert_close(layer(x), layer.proj(mixed), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_activation_checkpointing_changes_no_gradient(kind: str) -> None:
    model = use_attend(swin(kind))
    again = copy.deepcopy(model)
    again.set_grad_checkpointing(True)
    assert_same(model, again, torch.rand(2, 3, 32, 32))


@pytest.mark.slow
def test_a_compiled_swin_computes_the_same() -> None:
    """In one graph; v2 and all other systems are traced in test_every_system.py."""
    model = use_attend(swin("v1", depths=(2,), num_heads=(2,)))
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True)
    assert_same(model, compiled, torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_dropout_of_scores_is_left_to_timm(kind: str) -> None:
    model = swin(kind, attn_drop_rate=0.5)
    fused = use_attend(copy.deepcopy(model))
    images = torch.rand(2, 3, 32, 32)
    outputs = []
    for network in (model, fused):
        torch.manual_seed(3)
        outputs.append(network(images))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(fused(images), outputs[1])
    torch.testing.assert_close(fused.eval()(images), model.eval()(images), rtol=TOLERANCE, atol=TOLERANCE)


def test_the_masks_of_shifted_windows_are_not_repeated_for_each_image() -> None:
    """The largest tensor that a layer keeps does not grow beyond q, k and v with the number of images."""
    layer = SwinAttention(8, num_heads=2, window_size=4)
    mask = torch.zeros(9, 16, 16)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(9 * 20, 16, 8, requires_grad=True), mask)
    of_bias, of_qkv, of_maps = 9 * 2 * 16 * 16, 9 * 20 * 16 * 8 * 3, 9 * 20 * 2 * 16 * 16
    assert of_bias in sizes and max(sizes) <= of_qkv < of_maps


def test_windows_share_the_bias_of_their_place() -> None:
    q, k, v = (torch.randn(6, 2, 5, 8) for _ in range(3))
    bias = torch.randn(3, 2, 5, 5)
    one_by_one = torch.cat(
        [attend(q[b : b + 1], k[b : b + 1], v[b : b + 1], bias[b % 3, None]) for b in range(6)]
    )
    torch.testing.assert_close(attend(q, k, v, bias), one_by_one)
