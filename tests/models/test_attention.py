"""models.attention: every kernel computes what float64 softmax attention computes, and says why when it cannot."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from configs.attention import AttentionConfig
from configs.base import ConfigError
from models.attention import Kernel, attend, attention_layers, choose_kernel, use_attend, wished_kernel
from models.masked_autoencoder import MaskedAutoencoder
from models.systems import apply_attention

TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)]
"""Of an output, relative and absolute; a gradient may differ by five times as much."""


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None = None) -> Tensor:
    """Attention as written in the paper, one query at a time, in float64; item b has the bias of b mod G."""
    rows = []
    for n in range(q.shape[2]):
        score = torch.einsum("bhd,bhmd->bhm", q[:, :, n], k) * (
            q.shape[-1] ** -0.5 if scale is None else scale
        )
        if bias is not None:
            row = bias[:, :, min(n, bias.shape[2] - 1)]
            score = score + torch.stack([row[b % len(bias)] for b in range(len(q))])
        weight = score.exp() / score.exp().sum(-1, keepdim=True)
        rows.append(torch.einsum("bhm,bhmd->bhd", weight, v))
    return torch.stack(rows, dim=2)


def make(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


BIASES = {
    "none": None,
    "one": (1, 3, 7, 9),
    "each": (6, 3, 7, 9),
    "of windows": (2, 3, 7, 9),
    "of keys": (6, 1, 1, 9),
    "of all heads": (2, 1, 7, 9),
}


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "math"])
@pytest.mark.parametrize("bias_shape", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.4])
def test_kernel_equals_float64_attention_with_gradients(
    kernel: Kernel,
    bias_shape: tuple[int, ...] | None,
    dtype: torch.dtype,
    tolerance: float,
    scale: float | None,
) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [make((6, 3, length, 16), generator) for length in (7, 9, 9)]
    exact += [] if bias_shape is None else [make(bias_shape, generator)]
    # Reference and kernel start from the same numbers, whatever the kernel's precision.
    exact = [tensor.detach().to(dtype).double().requires_grad_() for tensor in exact]
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    q, k, v, bias = [*inputs, None][:4]
    assert q is not None and k is not None and v is not None
    out = attend(q, k, v, bias, kernel=kernel, scale=scale)
    expected = reference(exact[0], exact[1], exact[2], exact[3] if bias_shape else None, scale)
    assert out.shape == (6, 3, 7, 16) and out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)

    direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((out.double() * direction).sum(), inputs)
    wanted = torch.autograd.grad((expected * direction).sum(), exact)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance * 5, atol=tolerance * 5)


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "math"])
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 8), (49, 49, 24), (1, 300, 64)])
def test_kernel_equals_float64_attention_at_other_sizes(kernel: Kernel, n: int, m: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n)
    q, k, v, bias = (
        make(shape, generator) for shape in ((2, 3, n, d), (2, 3, m, d), (2, 3, m, d), (1, 3, n, m))
    )
    for given in (None, bias):
        expected = reference(q, k, v, given)
        torch.testing.assert_close(attend(q, k, v, given, kernel=kernel), expected, rtol=1e-12, atol=1e-12)


def test_autocast_lowers_what_attend_is_given() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 3, 5, 5, requires_grad=True)
    expected = attend(q, k, v, bias)
    for kernel in ("auto", "sdpa", "math"):
        with torch.autocast("cpu", torch.bfloat16):
            out = attend(q, k.bfloat16(), v, bias, kernel=kernel)  # type: ignore[arg-type]
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, rtol=3e-2, atol=3e-2)
        (gradient,) = torch.autograd.grad(out.float().sum(), bias)
        assert gradient.dtype == torch.float32


def test_a_wish_for_flash_that_cannot_be_met_says_why() -> None:
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(
        ConfigError, match="kernel 'flash' cannot be used: the tensors are on 'cpu' and it runs on CUDA only"
    ):
        attend(q, q, q, kernel="flash")
    with pytest.raises(ConfigError, match="it takes no additive bias"):
        attend(q, q, q, torch.zeros(1, 1, 2, 2), kernel="flash")
    with pytest.raises(ConfigError, match=r"kernel 'fast': allowed are 'auto', .*, 'math' and 'float8'"):
        attend(q, q, q, kernel="fast")  # type: ignore[arg-type]


def test_a_bias_runs_in_blocks_only_where_its_gradient_is_wanted_and_maps_outgrow_the_cache() -> None:
    num_maps = (8 << 20) // (64 * 64 * 4)
    q, bias = torch.zeros(1).expand(num_maps, 1, 64, 8), torch.zeros(1, 1, 64, 64)
    learned = bias.clone().requires_grad_()
    assert choose_kernel(q, q, q) == choose_kernel(q, q, q, bias) == "sdpa"
    assert choose_kernel(q, q, q, learned) == "math"
    q = torch.zeros(1).expand(num_maps + 1, 1, 64, 8)
    assert choose_kernel(q, q, q, learned) == "blocked"
    assert choose_kernel(q, q, q, learned, kernel="sdpa") == "sdpa"
    with torch.no_grad():
        assert choose_kernel(q, q, q, learned) == "sdpa"
    shapes = torch.zeros(1, 1, 2, 8, device="meta")
    assert choose_kernel(shapes, shapes, shapes, kernel="flash") == "sdpa"


@pytest.mark.parametrize(
    "args", [{}, {"qk_norm": True}, {"attn_drop_rate": 0.5}], ids=["plain", "qk_norm", "dropout"]
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_model_on_attend_gives_the_outputs_of_plain_timm(args: dict[str, object], training: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=4, img_size=32, **args).train(training)
    images = torch.rand(2, 3, 32, 32)
    outputs = []
    for _ in range(2):
        torch.manual_seed(1)
        outputs.append(model(images))
        use_attend(model)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    assert type(model.blocks[0].attn).__name__ == "_AttendAttention"


@pytest.mark.parametrize(
    ("name", "size"), [("test_vit", 32), ("eva02_tiny_patch14_224", 56), ("coatnet_nano_rw_224", 64)]
)
def test_each_kernel_that_a_recipe_may_wish_for_computes_the_same_network(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, img_size=size).eval()
    images = torch.rand(2, 3, size, size)
    expected = model(images)
    for kernel in ("math", "sdpa", "auto"):
        out = use_attend(copy.deepcopy(model), kernel=kernel)(images)  # type: ignore[arg-type]
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_a_wish_reaches_the_layers_of_timm_that_stay_its_own() -> None:
    model = timm.create_model("eva02_tiny_patch14_224", depth=2)
    assert all(layer.fused_attn for layer in attention_layers(model).values())
    assert not any(layer.fused_attn for layer in attention_layers(use_attend(model, "math")).values())
    assert all(layer.fused_attn for layer in attention_layers(use_attend(model, "sdpa")).values())


@pytest.mark.parametrize(
    ("name", "kernel", "message"),
    [
        ("resnet10t", "sdpa", "kernel is 'sdpa', but ResNet has no attention with heads; leave it out"),
        ("eva02_tiny_patch14_224", "flash", "kernel is 'flash', but EvaAttention of Eva cannot be given it"),
        (
            "eva02_tiny_patch14_224",
            "float8",
            r"cannot be given it \(the attention of timm's ViT and Swin can\)",
        ),
        ("coatnet_nano_rw_224", "tuned", "but Attention2d of MaxxVit cannot be given it"),
        ("resnet10t", "float8", "ResNet has no attention with heads; leave it out"),
        ("levit_128s", "sdpa", "but Attention and AttentionDownsample of LevitDistilled cannot be given it"),
    ],
)
def test_a_wish_that_a_network_cannot_be_given_is_refused(name: str, kernel: Kernel, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        use_attend(timm.create_model(name), kernel=kernel)


@pytest.mark.parametrize("kernel", ["flash", "float8", "tuned"])
def test_a_kernel_that_drops_no_scores_is_refused_where_they_are_dropped(kernel: Kernel) -> None:
    model = timm.create_model("test_vit", attn_drop_rate=0.1)
    with pytest.raises(
        ConfigError, match=r"drops no scores \(sdpa and math can\); take attn_drop_rate out of"
    ):
        use_attend(model, kernel)
    use_attend(model, "sdpa")


def test_attention_layers_are_the_innermost_modules_with_heads() -> None:
    names = attention_layers(timm.create_model("swinv2_tiny_window8_256", depths=(1, 1, 1, 1)))
    assert list(names) == [f"layers.{stage}.blocks.0.attn" for stage in range(4)]
    assert attention_layers(nn.Sequential(nn.Linear(2, 2))) == {}


def test_a_decoder_runs_on_the_kernel_of_its_encoder() -> None:
    encoder = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    assert wished_kernel(encoder) == "auto"
    mae = MaskedAutoencoder(use_attend(encoder, "math"), width=32, depth=1, num_heads=2)
    assert wished_kernel(mae.decoder_blocks) == "math"


@pytest.mark.parametrize(
    "system", [{"dynamic": {"threshold": 0.9}}, {"two_stage": {"window": 2, "num_global": 4}}]
)
def test_a_wish_is_found_in_what_took_the_layers_over(system: dict[str, Any]) -> None:
    config = AttentionConfig.model_validate({"kernel": "float8", **system})
    encoder = apply_attention(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32), config)
    assert wished_kernel(encoder) == "float8"
    assert (
        wished_kernel(MaskedAutoencoder(encoder, width=32, depth=1, num_heads=2).decoder_blocks) == "float8"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["flash", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_kernel_equals_float64_attention_on_a_gpu(kernel: Kernel, dtype: torch.dtype) -> None:
    if kernel == "flash":
        pytest.importorskip("flash_attn")
    inputs = [torch.randn(2, 3, 197, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    out, expected = attend(*inputs, kernel=kernel), attend(*exact, kernel="math")
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    gradients = torch.autograd.grad(out.double().square().sum(), inputs)
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("windows", [1, 4])
def test_a_learned_bias_has_its_gradient_on_a_gpu(windows: int) -> None:
    q, k, v = (torch.randn(8, 3, 49, 32, device="cuda") for _ in range(3))
    bias = torch.randn(windows, 3, 49, 49, device="cuda", requires_grad=True)
    exact = bias.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(attend(q, k, v, bias).square().sum(), bias)
    out = attend(q.double(), k.double(), v.double(), exact, kernel="math")
    (wanted,) = torch.autograd.grad(out.square().sum(), exact)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-2, atol=1e-2)
