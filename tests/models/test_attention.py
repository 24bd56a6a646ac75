"""models.attention: every kernel computes what float64 softmax attention computes, and says why when it cannot."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from configs.base import ConfigError
from models.attention import Kernel, attend, choose_kernel, use_attend


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention as written in the paper, one query at a time, in float64."""
    rows = []
    for n in range(q.shape[2]):
        score = torch.einsum("bhd,bhmd->bhm", q[:, :, n], k) / q.shape[-1] ** 0.5
        if bias is not None:
            score = score + bias[:, :, n]
        weight = score.exp() / score.exp().sum(-1, keepdim=True)
        rows.append(torch.einsum("bhm,bhmd->bhd", weight, v))
    return torch.stack(rows, dim=2)


def make(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "math"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)], ids=str
)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 8), (7, 7, 16), (5, 9, 32)])
def test_kernel_equals_float64_attention_with_gradients(
    kernel: Kernel, with_bias: bool, dtype: torch.dtype, tolerance: float, n: int, m: int, d: int
) -> None:
    generator = torch.Generator().manual_seed(n * 100 + m)
    exact = [make((2, 3, length, d), generator) for length in (n, m, m)]
    exact += [make((1, 3, n, m), generator)] if with_bias else []
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    q, k, v, bias = [*inputs, None][:4]
    assert q is not None and k is not None and v is not None
    out = attend(q, k, v, bias, kernel=kernel)
    expected = reference(exact[0], exact[1], exact[2], exact[3] if with_bias else None)
    assert out.shape == (2, 3, n, d) and out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)

    direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((out.double() * direction).sum(), inputs)
    wanted = torch.autograd.grad((expected * direction).sum(), exact)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance * 5, atol=tolerance * 5)


def test_a_wish_for_flash_that_cannot_be_met_says_why() -> None:
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(
        ConfigError, match="kernel 'flash' cannot be used: the tensors are on 'cpu' and it runs on CUDA only"
    ):
        attend(q, q, q, kernel="flash")
    with pytest.raises(ConfigError, match="it takes no additive bias"):
        attend(q, q, q, torch.zeros(1, 1, 2, 2), kernel="flash")
    with pytest.raises(ConfigError, match="kernel 'fast': allowed are 'auto', 'flash', 'sdpa' and 'math'"):
        attend(q, q, q, kernel="fast")  # type: ignore[arg-type]
    assert choose_kernel(q, q, q) == "sdpa"


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


@pytest.mark.gpu
def test_flash_equals_math_on_a_gpu() -> None:
    pytest.importorskip("flash_attn")
    q, k, v = (torch.randn(2, 3, 64, 32, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    expected = attend(q.double(), k.double(), v.double(), kernel="math")
    torch.testing.assert_close(attend(q, k, v, kernel="flash").double(), expected, rtol=2e-2, atol=2e-2)
