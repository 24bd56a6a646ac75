"""The FlashAttention packages: which of them a GPU runs best, and one way to call it; the only importer of them.

FA2 is flash-attn (Dao 2023), FA3 its folder hopper (Shah et al. 2024), FA4 flash-attn-4. They compute in float16 and
bfloat16, without an additive bias. Shapes: B batch, N and M tokens, H heads, D head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flash:
    """A generation of FlashAttention that is installed."""

    name: str
    """FA2, FA3 or FA4."""
    function: Callable[..., Any]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """softmax(scale q k^T) v of [B, H, N, D] and [B, H, M, D], as [B, H, N, D]."""
        # The packages want [B, N, H, D]; some give the log-sum-exp as well.
        found = self.function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale=scale)
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out.transpose(1, 2)


def flash_obstacle(device: torch.device, width: int) -> str | None:
    """Why there is no FlashAttention for heads so wide on a GPU; None where there is."""
    name: str = flash_name(device)
    if name not in _WIDEST:
        return name
    if width > _WIDEST[name] or width % 8:
        return f"heads are {width} wide, and {name} takes multiples of 8 up to {_WIDEST[name]}"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def flash_name(device: torch.device) -> str:
    """FA2, FA3 or FA4, or why none of them can be had; torch.compile takes the answer as given."""
    flash = best_flash(device)
    return flash if isinstance(flash, str) else flash.name


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_flash(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """By the GPU's best generation. torch.compile cuts its graph around it, since the packages cannot all be traced."""
    flash = best_flash(q.device)
    if isinstance(flash, str):
        raise RuntimeError(f"FlashAttention is called where it cannot be: {flash}")
    return flash.attend(q, k, v, scale=scale)


def best_flash(device: torch.device) -> Flash | str:
    """The generation to use on a GPU, or why there is none."""
    return _best_of_capability(torch.cuda.get_device_capability(device)[0])


def best_of(capability: int) -> Flash | str:
    """The same by compute capability: 8 is Ampere and Ada, 9 Hopper, 10 and 11 Blackwell, 12 desktop Blackwell."""
    if capability < 8:
        return f"the GPU has compute capability {capability}, and FlashAttention begins with 8 (Ampere)"
    problems = []
    for name in _PREFERRED.get(capability, ("FA2",)):
        generation = _GENERATIONS[name]
        try:
            function = generation.load()
        except (ImportError, OSError) as error:  # OSError: a wheel that was built for another torch
            problems.append(f"{name} ({generation.package}): {error}")
        else:
            return Flash(name=name, function=function)
    return f"no package of FlashAttention for this GPU imports; {'; '.join(problems)}"


_best_of_capability = functools.cache(best_of)


@dataclass(frozen=True, slots=True)
class _Generation:
    package: str
    load: Callable[[], Callable[..., Any]]


def _load_fa2() -> Callable[..., Any]:
    from flash_attn import flash_attn_func

    function: Callable[..., Any] = flash_attn_func
    return function


def _load_fa3() -> Callable[..., Any]:
    from flash_attn_interface import flash_attn_func

    function: Callable[..., Any] = flash_attn_func
    return function


def _load_fa4() -> Callable[..., Any]:
    from flash_attn.cute import flash_attn_func

    function: Callable[..., Any] = flash_attn_func
    return function


_GENERATIONS = {
    "FA2": _Generation("flash-attn", _load_fa2),
    "FA3": _Generation("flash-attn, folder hopper", _load_fa3),
    "FA4": _Generation("flash-attn-4", _load_fa4),
}
_WIDEST = {"FA2": 256, "FA3": 256, "FA4": 128}
"""Heads of which a generation has forward and backward."""
# FA3 is written for Hopper alone; FA4 for Blackwell, and runs on Hopper; neither knows desktop Blackwell.
_PREFERRED = {9: ("FA3", "FA4", "FA2"), 10: ("FA4", "FA2"), 11: ("FA4", "FA2")}
