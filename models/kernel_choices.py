"""Which kernel was measured to be the fastest for a call of attention: what ``kernel: tuned`` goes by in this process.

Who measures is models/kernel_timing.py, who remembers and lets all ranks agree is engine/tuning.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Chosen = Literal[
    "flash", "sdpa", "sdpa: flash", "sdpa: efficient", "sdpa: cudnn", "blocked", "math", "float8"
]
"""A kernel that attend() takes; "sdpa: flash" and so on are what torch is told to take instead of its own choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What the fastest kernel of a call depends on, beside the machine."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    bias: tuple[int, ...] | None
    dtype: str
    device: str
    """Its kind: cpu, cuda."""
    differentiates: bool
    learns_bias: bool

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Signature:
        """Of a call as attend() sees it, after autocast."""
        return cls(
            q=tuple(q.shape),
            k=tuple(k.shape),
            v=tuple(v.shape),
            bias=None if bias is None else tuple(bias.shape),
            dtype=str(q.dtype).removeprefix("torch."),
            device=q.device.type,
            differentiates=_differentiates(q, k, v, bias),
            learns_bias=bias is not None and torch.is_grad_enabled() and bias.requires_grad,
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Signature:
        """What dataclasses.asdict gave and JSON kept; ValueError or TypeError for anything else."""
        given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
        found = cls(**given)
        sizes = [found.q, found.k, found.v, *([] if found.bias is None else [found.bias])]
        if not all(isinstance(size, tuple) and list(map(type, size)) == [int] * 4 for size in sizes):
            raise ValueError(f"shapes are lists of four numbers, not {sizes!r}")
        return found


def use_choices(choices: Mapping[Signature, Chosen]) -> None:
    """From here on ``tuned`` goes by these, and is ``auto`` for all other calls."""
    global _choices
    _choices = tuple(choices.items())


def choice_for(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Chosen | None:
    """What was chosen for such a call; None where none was."""
    # One after the other: torch.compile follows comparisons of sizes, and could not follow hashes of them.
    for signature, kernel in _choices:
        if _is_of(signature, q, k, v, bias):
            return kernel
    return None


def is_kernel(name: object) -> bool:
    """Whether there is one of this name."""
    return name in get_args(Chosen)


def _is_of(signature: Signature, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    return signature == Signature.of(q, k, v, bias)


def _differentiates(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


_choices: tuple[tuple[Signature, Chosen], ...] = ()
