"""How much memory a training step's activations take, from a dry run in fake tensors: no GPU, and no memory either."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from models.attention import AttendCall, run_kernel, standing_in
from models.dry_step import Forward, call_model, dry_step

_LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}


def peak_activations(
    model: nn.Module,
    input_shape: tuple[int, int, int, int],
    *,
    precision: Literal["fp32", "bf16", "fp16"],
    forward: Forward = call_model,
) -> int:
    """Most bytes alive at once in a forward and backward of `input_shape` (B, C, H, W), without weights and gradients.

    What autograd keeps, the working copies of weights that autocast makes, and temporaries; attention counts as the
    fused kernel it is on a GPU, whose N x N map is never formed. The trace dispatches as on a CPU: layer norm in
    autocast keeps fewer fp32 copies there than on CUDA.
    """
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        images = torch.empty(input_shape)
        with _fused_attention(), PeakMemory() as peak, _autocast(precision):
            dry_step(model, images, forward=forward)
    most_bytes: int = peak.most_bytes + images.untyped_storage().nbytes()
    return most_bytes


@contextmanager
def checkpointing(model: nn.Module, *, enabled: bool) -> Iterator[bool]:
    """timm's activation checkpointing turned on or off within; gives False where the model has none."""
    toggle = getattr(model, "set_grad_checkpointing", None)
    if toggle is None:
        yield False
        return
    before = any(getattr(module, "grad_checkpointing", False) is True for module in model.modules())
    try:
        toggle(enabled)
    except AssertionError:  # how timm's models say that they have none
        yield False
        return
    try:
        yield True
    finally:
        toggle(before)


def _autocast(precision: str) -> torch.autocast:
    lower = _LOWER.get(precision)
    return torch.autocast("cpu", dtype=lower, enabled=lower is not None)


class PeakMemory(TorchDispatchMode):
    """Adds up the storages that operations within a `with` block make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most_bytes = 0
        self._bytes = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_iter(results):
            if isinstance(result, Tensor):
                self._add(result.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def forget(_: Any) -> None:
            self._bytes -= num_bytes
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, forget)
        self._bytes += num_bytes
        self.most_bytes = max(self.most_bytes, self._bytes)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Lets attention keep what FlashAttention and its like keep: q, k, v, the result, and a number per row.

    On a CPU torch falls back to whole maps where there is a bias. NOTE: exchanged by hand, since a TorchFunctionMode is
    not seen by the blocks that a checkpoint computes again in the backward.
    """
    kernel = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attend  # type: ignore[assignment]  # takes the arguments that are used
    try:
        with standing_in(_stand_in):
            yield
    finally:
        F.scaled_dot_product_attention = kernel


def _stand_in(call: AttendCall) -> Tensor:
    # What it keeps are 8 bits of each number, on a GPU as on a CPU.
    return run_kernel("float8", call) if call.kernel == "float8" else _attend(*call[:4])


def _attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    out: Tensor = _Attention.apply(_lowered(q), _lowered(k), _lowered(v), attn_mask)
    return out


def _lowered(tensor: Tensor) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        log_sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, bias, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, _, _ = ctx.saved_tensors
        wanted = bias is not None and bias.requires_grad
        return (*map(torch.empty_like, (q, k, v)), torch.empty_like(bias) if wanted else None)
