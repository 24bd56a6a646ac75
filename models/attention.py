"""attend(): softmax attention on the fastest kernel that can compute it.

Shapes: B batch, H heads, N queries, M keys, D head width; q is [B, H, N, D], k and v are [B, H, M, D] and bias is
[G, H or 1, N or 1, M], where G divides B and item b has the bias of b mod G: one for all, one each, or between them one
for each window of an image, which lie beside each other in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs.base import ConfigError
from models.blocked_attention import attend_in_blocks
from models.flash import DTYPES, attend_flash, flash_obstacle
from models.float8_attention import attend_in_float8
from models.kernel_choices import Chosen, choice_for

Kernel = Literal["auto", "tuned", "flash", "sdpa", "math", "float8"]
"""What can be wished for."""
_WISHES = get_args(Kernel)

_CACHED_BYTES = 8 << 20
"""Maps of a learned bias up to this size stay in a CPU's last cache: to keep them is faster than to form them again."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    kernel: Kernel = "auto",
    scale: float | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v as [B, H, N, D]; `scale` is 1 / sqrt(D) unless it is given.

    ``auto`` is flash where it is usable, else torch's SDPA; ``tuned`` what was measured to be the fastest
    (models/kernel_choices.py), else as auto. A kernel asked for by name that cannot do it is a ConfigError with the
    reason, never a silent fallback. Autocast lowers the inputs, as it does those of SDPA.
    """
    q, k, v = (_autocast(x) for x in (q, k, v))
    if bias is not None:
        # Without gradients a learned bias is a constant, which more kernels take.
        bias = _autocast(bias if torch.is_grad_enabled() else bias.detach())
    call = AttendCall(q, k, v, bias, kernel, q.shape[-1] ** -0.5 if scale is None else scale)
    if _stand_in is not None:
        return _stand_in(call)
    return run_kernel(choose_kernel(q, k, v, bias, kernel=kernel), call)


class AttendCall(NamedTuple):
    """What attend() was called with."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    kernel: Kernel
    scale: float


def run_kernel(kernel: Chosen, call: AttendCall) -> Tensor:
    """What attend() gives with this kernel, whatever the call wishes for."""
    return _KERNELS[kernel](call)


def choose_kernel(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, kernel: Kernel = "auto"
) -> Chosen:
    """The kernel that attend() takes for these inputs."""
    if kernel not in _WISHES:
        *names, last = map(repr, _WISHES)
        raise ConfigError(f"attention kernel {kernel!r}: allowed are {', '.join(names)} and {last}")
    if q.device.type == "meta":  # shapes alone: nothing is computed, whatever was wished for
        return "math" if kernel == "math" else "sdpa"
    wish = choice_for(q, k, v, bias) or "auto" if kernel == "tuned" else kernel
    if wish != "auto" and wish != "flash":
        return wish
    obstacle = _flash_obstacle(q, k, v, bias)
    if obstacle is None:
        return "flash"
    if wish == "flash":
        raise ConfigError(
            f"attention kernel 'flash' cannot be used: {obstacle}; 'auto' takes the fastest kernel that can"
        )
    is_learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    if not is_learned or q.device.type != "cpu":
        return "sdpa"
    map_bytes = q.shape[:3].numel() * k.shape[2] * q.element_size()
    return "math" if map_bytes <= _CACHED_BYTES else "blocked"


def able_kernels(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Chosen, ...]:
    """The kernels to choose from for this call, auto's first; none that rounds, or that keeps much more than others.

    Those that torch is told to take may not be able to, and say so when they are called.
    """
    auto = choose_kernel(q, k, v, bias)
    able: list[Chosen] = [auto, "sdpa"]
    if _flash_obstacle(q, k, v, bias) is None:
        able.append("flash")
    if q.device.type == "cuda":
        able += ["sdpa: flash", "sdpa: efficient", "sdpa: cudnn"]
    elif q.device.type == "cpu" and bias is not None:
        able.append("blocked")
    n, m, width = q.shape[2], k.shape[2], q.shape[3] + v.shape[3]
    if n * m <= (n + m) * width:  # maps are no larger than what all keep
        able.append("math")
    return tuple(dict.fromkeys(able))


def any_kernel() -> AbstractContextManager[None]:
    """Within, no wish is insisted on: for a trial on another device than that of the run."""
    return standing_in(_attend_sdpa)


@contextmanager
def standing_in(function: Callable[[AttendCall], Tensor]) -> Iterator[None]:
    """Within, attend() gives its calls to `function`: for runs in shapes, which watch or stand for other devices."""
    global _stand_in
    before, _stand_in = _stand_in, function
    try:
        yield
    finally:
        _stand_in = before


_stand_in: Callable[[AttendCall], Tensor] | None = None


def use_attend(model: nn.Module, kernel: Kernel = "auto") -> nn.Module:
    """Lets the attention of a timm ViT or Swin run on attend(), in place; parameters and their names stay as they are.

    Other layers of timm keep their own SDPA, or their formula where `kernel` is math. A wish that some layer cannot
    meet, or that meets no layer at all, is a ConfigError.
    """
    ours = _layer_classes()
    layers: list[Any] = list(attention_layers(model).values())
    for layer in layers:
        if type(layer) in ours:
            layer.__class__ = ours[type(layer)]
    others = [layer for layer in layers if not hasattr(layer, "kernel")]
    if kernel != "auto":
        _check_wish(model, kernel, layers, others)
        for layer in others:
            layer.fused_attn = kernel == "sdpa"
    for layer in filter(lambda layer: type(layer) in ours.values(), layers):
        layer.kernel = kernel
    return model


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with attention heads by name: modules with ``num_heads`` that have none such within."""
    named = {name: module for name, module in model.named_modules() if _has_heads(module)}
    return {name: module for name, module in named.items() if sum(map(_has_heads, module.modules())) == 1}


def wished_kernel(model: nn.Module) -> Kernel:
    """What `use_attend`, or what took its layers over, was last told; auto where no layer was told anything."""
    layers: list[Any] = list(attention_layers(model).values())
    return next((layer.kernel for layer in layers if hasattr(layer, "kernel")), "auto")


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is timm's attention over all tokens, also on attend(), and nothing that was built on it."""
    return type(layer) in (Attention, _AttendAttention)


class _AttendAttention(Attention):
    """timm's attention with its fused branch on attend(); masks, dropout and `fused_attn = False` stay timm's."""

    kernel: Kernel = "auto"

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        drops = self.training and self.attn_drop.p > 0
        if not self.fused_attn or attn_mask is not None or is_causal or drops:
            out: Tensor = super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
            return out
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(self.q_norm(q), self.k_norm(k), v, kernel=self.kernel)
        mixed = self.norm(mixed.transpose(1, 2).reshape(b, n, self.attn_dim))
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        projected: Tensor = self.proj_drop(self.proj(mixed))
        return projected


def _layer_classes() -> Mapping[type[nn.Module], type[nn.Module]]:
    """Layers of timm, and what they become."""
    # Here, since Swin's layers are built on attend().
    from models.swin_attention import SWIN_LAYERS

    return {Attention: _AttendAttention, **SWIN_LAYERS}


def _has_heads(module: nn.Module) -> bool:
    return isinstance(getattr(module, "num_heads", None), int)


def _check_wish(model: nn.Module, kernel: Kernel, layers: list[Any], others: list[Any]) -> None:
    what, name = f"model.attention.kernel is {kernel!r}", type(model).__name__
    if not layers:
        raise ConfigError(f"{what}, but {name} has no attention with heads; leave it out")
    is_ours = kernel in _ONLY_OURS
    cannot = {type(x).__name__ for x in others if is_ours or not hasattr(x, "fused_attn")}
    if cannot and kernel != "math":
        raise ConfigError(
            f"{what}, but {' and '.join(sorted(cannot))} of {name} cannot be given it (the attention of timm's ViT and "
            "Swin can); leave it out, and the layer takes timm's own choice"
        )
    if is_ours and any(layer.attn_drop.p > 0 for layer in layers):
        raise ConfigError(
            f"{what}, but it drops no scores (sdpa and math can); take attn_drop_rate out of model.args, or leave the "
            "kernel out"
        )


def _autocast(x: Tensor) -> Tensor:
    kind = x.device.type
    if x.dtype == torch.float64 or kind == "meta" or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def _flash_obstacle(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> str | None:
    """Why FlashAttention cannot compute this, or None; cheap tests come first, the import last."""
    if bias is not None:
        return "it takes no additive bias"
    if q.device.type != "cuda":
        return f"the tensors are on {q.device.type!r} and it runs on CUDA only"
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        kinds = f"{q.dtype}, {k.dtype}, {v.dtype}"
        return f"it computes in float16 or bfloat16, and q, k, v are {kinds} (see train.precision: bf16)"
    return flash_obstacle(q.device, max(q.shape[-1], v.shape[-1]))


def _attend_flash(call: AttendCall) -> Tensor:
    out: Tensor = attend_flash(call.q, call.k, call.v, scale=call.scale)
    return out


def _attend_sdpa(call: AttendCall) -> Tensor:
    q, k, v, bias = folded(call)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=call.scale)
    return out.reshape(*call.q.shape[:3], v.shape[-1])


def _attend_sdpa_by(backend: SDPBackend, call: AttendCall) -> Tensor:
    with sdpa_kernel(backend):
        return _attend_sdpa(call)


def _attend_blocked(call: AttendCall) -> Tensor:
    q, k, v, bias = call[:4]
    if bias is None:
        raise RuntimeError("attention in blocks is for a bias, and there is none")
    return attend_in_blocks(q, k, v, _whole(bias, q, k), scale=call.scale)


def _attend_math(call: AttendCall) -> Tensor:
    q, k, v, bias = folded(call)
    scores = (q * call.scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    mixed = scores.softmax(dim=-1) @ v
    return mixed.reshape(*call.q.shape[:3], v.shape[-1])


def folded(call: AttendCall) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v and bias where 1 < G < B as [B / G, G H, ...], which broadcasts: no bias is copied for each image."""
    q, k, v, bias = call[:4]
    if bias is None or bias.shape[0] in (1, q.shape[0]):
        return q, k, v, bias
    groups, heads = bias.shape[0], q.shape[1]
    q, k, v = (x.unflatten(0, (-1, groups)).flatten(1, 2) for x in (q, k, v))
    return q, k, v, bias.expand(-1, heads, -1, -1).flatten(0, 1).unsqueeze(0)


def _attend_float8(call: AttendCall) -> Tensor:
    q, k, v, bias = call[:4]
    return attend_in_float8(q, k, v, None if bias is None else _whole(bias, q, k), scale=call.scale)


def _whole(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """[G, H, N, M], a view."""
    return bias.expand(-1, q.shape[1], q.shape[2], k.shape[2])


_ONLY_OURS = ("tuned", "flash", "float8")
"""Wishes that no layer of timm knows by itself, and that drop no scores."""
_KERNELS: dict[Chosen, Callable[[AttendCall], Tensor]] = {
    "flash": _attend_flash,
    "sdpa": _attend_sdpa,
    "sdpa: flash": partial(_attend_sdpa_by, SDPBackend.FLASH_ATTENTION),
    "sdpa: efficient": partial(_attend_sdpa_by, SDPBackend.EFFICIENT_ATTENTION),
    "sdpa: cudnn": partial(_attend_sdpa_by, SDPBackend.CUDNN_ATTENTION),
    "blocked": _attend_blocked,
    "math": _attend_math,
    "float8": _attend_float8,
}
