"""attend(): softmax attention on the fastest kernel that can compute it; the only importer of flash_attn.

Shapes: B batch, H heads, N queries, M keys, D head width; q is [B, H, N, D], k and v are [B, H, M, D] and bias is
[B or 1, H or 1, N, M].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

from configs.base import ConfigError

Kernel = Literal["auto", "flash", "sdpa", "math"]

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_MAX_WIDTH = 256


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, kernel: Kernel = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v as [B, H, N, D]; ``auto`` is flash where it is usable, else SDPA.

    A kernel asked for by name that cannot do it is a ConfigError with the reason, never a silent fallback.
    """
    chosen = choose_kernel(q, k, v, bias, kernel=kernel)
    if chosen == "flash":
        return _attend_flash(q, k, v)
    if chosen == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return _attend_math(q, k, v, bias)


def choose_kernel(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, kernel: Kernel = "auto"
) -> Literal["flash", "sdpa", "math"]:
    """The kernel that attend() takes for these inputs."""
    if kernel not in ("auto", "flash", "sdpa", "math"):
        raise ConfigError(f"attention kernel {kernel!r}: allowed are 'auto', 'flash', 'sdpa' and 'math'")
    if kernel in ("sdpa", "math"):
        return kernel
    obstacle = _flash_obstacle(q, k, v, bias)
    if kernel == "flash" and obstacle is not None:
        raise ConfigError(
            f"attention kernel 'flash' cannot be used: {obstacle}; 'auto' takes the fastest kernel that can"
        )
    return "sdpa" if obstacle is not None else "flash"


def use_attend(model: nn.Module) -> nn.Module:
    """Lets the ViT attention of a timm model run on attend(), in place; parameters and their names stay as they are."""
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = _AttendAttention
    return model


class _AttendAttention(Attention):
    """timm's attention with its fused branch on attend(); masks, dropout and `fused_attn = False` stay timm's."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        drops = self.training and self.attn_drop.p > 0
        if not self.fused_attn or attn_mask is not None or is_causal or drops:
            out: Tensor = super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
            return out
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).reshape(b, n, self.attn_dim)
        mixed = self.norm(mixed)
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        projected: Tensor = self.proj_drop(self.proj(mixed))
        return projected


def _flash_obstacle(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> str | None:
    """Why the flash_attn package cannot compute this, or None; cheap tests come first, the import last."""
    if bias is not None:
        return "it takes no additive bias"
    if q.device.type != "cuda":
        return f"the tensors are on {q.device.type!r} and it runs on CUDA only"
    if q.dtype not in _FLASH_DTYPES or not q.dtype == k.dtype == v.dtype:
        kinds = f"{q.dtype}, {k.dtype}, {v.dtype}"
        return f"it computes in float16 or bfloat16, and q, k, v are {kinds} (see train.precision: bf16)"
    if max(q.shape[-1], v.shape[-1]) > _FLASH_MAX_WIDTH:
        return f"heads are {max(q.shape[-1], v.shape[-1])} wide and it takes at most {_FLASH_MAX_WIDTH}"
    return _load_flash()[1]


def _attend_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    function = _load_flash()[0]
    if function is None:
        raise RuntimeError("flash_attn vanished between the choice of the kernel and its use")
    # flash_attn wants [B, N, H, D].
    out: Tensor = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


@functools.cache
def _load_flash() -> tuple[Callable[..., Tensor] | None, str | None]:
    """The package's function, or why there is none (a wheel built for another torch: ImportError or OSError)."""
    try:
        from flash_attn import flash_attn_func
    except (ImportError, OSError) as error:
        return None, f"the package flash_attn does not import ({error})"
    return flash_attn_func, None


def _attend_math(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    mixed: Tensor = scores.softmax(dim=-1) @ v
    return mixed
