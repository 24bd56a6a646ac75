"""Which kernel computes the attention of each layer, found out before training and for the device that it is on.

A forward in fake tensors (shapes, dtypes and devices, but no numbers) shows what each layer calls attention with; what
torch's SDPA makes of such a call is asked of torch itself, on the real device. Nothing is computed, nothing is random,
and weights that ZeRO or the compiler will change are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.nn.attention import SDPBackend

from configs.base import ConfigError
from models.attention import AttendCall, attention_layers, choose_kernel, folded, standing_in
from models.dry_step import Forward, call_model, dry_step
from models.flash import flash_name
from models.float8 import uses_scaled_mm

_LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}
_UNTRACEABLE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


def report_kernels(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    device: torch.device,
    precision: Literal["fp32", "bf16", "fp16"],
    batch: int = 2,
    forward: Forward = call_model,
) -> dict[str, str]:
    """{layer: kernel} of the layers with attention heads that run when it trains on `batch` images of (C, H, W).

    Kernels are "flash: FA2" (FA3, FA4), "sdpa: flash" (efficient, cudnn, math), "blocked", "math", and by how its
    products are made "float8: emulated" (scaled_mm). A network that cannot run in shapes alone gives {}.
    Raises ConfigError with each reason why a kernel wished for cannot be had.
    """
    watch = _Watch()
    with watch.over(model):
        done = forward_in_shapes(
            model, input_shape, device=device, precision=precision, batch=batch, forward=forward
        )
    if not done:
        return {}
    if watch.mistakes:
        raise ConfigError("\n".join(f"model.attention.kernel: {mistake}" for mistake in watch.mistakes))
    return {layer: _name_of(call, device) for layer, call in watch.calls.items()}


def forward_in_shapes(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    device: torch.device,
    precision: Literal["fp32", "bf16", "fp16"],
    batch: int,
    forward: Forward = call_model,
) -> bool:
    """A forward in fake tensors, on a device that need not exist; False where the network cannot run so."""
    # A network may hold real tensors that are neither weights nor buffers.
    shapes = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with shapes, torch.random.fork_rng(devices=[]), _autocast(device, precision):
            images = torch.empty(batch, *input_shape, device=device)
            dry_step(model, images, forward=forward, backward=False)
    except _UNTRACEABLE:
        return False
    return True


def layers_by_kernel(kernels: Mapping[str, str]) -> dict[str, list[str]]:
    """The same the other way round: the layers of each kernel, in the order of the network."""
    found: dict[str, list[str]] = {}
    for layer, kernel in kernels.items():
        found.setdefault(kernel, []).append(layer)
    return found


class _Shape(NamedTuple):
    """A tensor without its numbers."""

    size: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor | None) -> _Shape | None:
        return None if tensor is None else cls(tuple(tensor.shape), tensor.dtype, tensor.requires_grad)

    def empty(self, device: torch.device) -> Tensor:
        tensor = torch.empty(self.size, dtype=self.dtype, device=device)
        return tensor.requires_grad_() if self.requires_grad else tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _SdpaCall:
    """What torch's choice among its kernels depends on."""

    shapes: tuple[_Shape | None, ...]
    """Of q, k, v and the bias."""
    rest: Mapping[str, Any]
    """dropout_p, is_causal, scale, enable_gqa."""

    def backend(self, device: torch.device) -> str:
        q, k, v, bias = (None if shape is None else shape.empty(device) for shape in self.shapes)
        chosen = torch._fused_sdp_choice(q, k, v, attn_mask=bias, **self.rest)  # type: ignore[arg-type]
        return _BACKENDS[SDPBackend(chosen)]


_BACKENDS = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
    SDPBackend.OVERRIDEABLE: "of the device",
}


@dataclass(slots=True)
class _Watch:
    """The calls of attention in the layers of a forward."""

    calls: dict[str, str | _SdpaCall] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    _running: list[str] = field(default_factory=list)

    @contextmanager
    def over(self, model: nn.Module) -> Iterator[None]:
        kernel = F.scaled_dot_product_attention
        with ExitStack() as stack:
            for name, layer in attention_layers(model).items():
                handles = (
                    layer.register_forward_pre_hook(partial(self._enter, name)),
                    layer.register_forward_hook(self._leave, always_call=True),
                )
                for handle in handles:
                    stack.callback(handle.remove)
            stack.enter_context(standing_in(self._on_attend))
            # By hand, as in activation_memory: what is asked for is the call, with its arguments.
            F.scaled_dot_product_attention = partial(self._on_sdpa, kernel)
            try:
                yield
            finally:
                F.scaled_dot_product_attention = kernel

    def _enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        self._running.append(name)
        self.calls[name] = "math"  # unless it calls something better

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()

    def _on_attend(self, call: AttendCall) -> Tensor:
        try:
            chosen = choose_kernel(call.q, call.k, call.v, call.bias, kernel=call.kernel)
        except ConfigError as mistake:
            if str(mistake) not in self.mistakes:
                self.mistakes.append(str(mistake))
        else:
            q, k, v, bias = folded(call)
            rest = {"dropout_p": 0.0, "is_causal": False, "scale": call.scale}
            if chosen == "float8":
                self._note(f"float8: {'scaled_mm' if uses_scaled_mm(q, k) else 'emulated'}")
            else:
                self._note(self._sdpa((q, k, v, bias), rest) if chosen == "sdpa" else chosen)
        return call.q.new_empty(*call.q.shape[:3], call.v.shape[-1])

    def _on_sdpa(
        self, kernel: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any
    ) -> Tensor:
        given = {**dict(zip(("attn_mask", "dropout_p", "is_causal"), args, strict=False)), **named}
        bias = given.pop("attn_mask", None)
        self._note(self._sdpa((q, k, v, bias), given))
        return kernel(q, k, v, attn_mask=bias, **given)

    def _sdpa(self, tensors: tuple[Tensor | None, ...], rest: Mapping[str, Any]) -> _SdpaCall:
        return _SdpaCall(shapes=tuple(_Shape.of(_lowered(tensor)) for tensor in tensors), rest=rest)

    def _note(self, call: str | _SdpaCall) -> None:
        if self._running:
            self.calls[self._running[-1]] = call


def _name_of(call: str | _SdpaCall, device: torch.device) -> str:
    if isinstance(call, _SdpaCall):
        return f"sdpa: {call.backend(device)}"
    return f"flash: {flash_name(device)}" if call == "flash" else call


def _lowered(tensor: Tensor | None) -> Tensor | None:
    """As autocast hands it to SDPA."""
    if tensor is None or tensor.dtype not in (torch.float32, *_LOWER.values()):
        return tensor
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    lower = _LOWER.get(precision)
    return torch.autocast(device.type, dtype=lower, enabled=lower is not None)
