"""Which kernel is the fastest for a call of attention on this machine: measured, with the benefit of doubt to ``auto``.

Kernels take turns: a round has one run of each, and each begins as many rounds as the others. What counts is a run's
ratio to that of auto's kernel in the same round, so that other work on the machine slows both. Another kernel is taken
if the median of its ratios is below 0.95 and three in four rounds are below 1; and if it is so once more, in
rounds of these two alone: the best of several is often the luckiest.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from models.attention import AttendCall, able_kernels, run_kernel, standing_in
from models.dry_step import Forward, call_model
from models.kernel_choices import Chosen, Signature
from models.kernel_report import forward_in_shapes
from models.latency import wait_for_device

_WORTH = 0.95
_ROUNDS = 15
_LEAST_ROUNDS = 5
_MOST_S = 2.0
"""Seconds of rounds, if the least number has been run."""
_LONG_RUN_S = 0.2
"""Of a call that takes longer, a part of the batch is measured."""
_LEAST_RUN_S = 1e-3
"""A run repeats a call for so long, which is many times a clock's step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What was found for a call."""

    kernel: Chosen
    """What is taken."""
    auto: Chosen
    ratios: Mapping[str, float]
    """Median time of each kernel to that of auto's, in the rounds of all."""


def attention_signatures(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    device: torch.device,
    precision: Literal["fp32", "bf16", "fp16"],
    batch: int,
    forward: Forward = call_model,
) -> list[Signature]:
    """Of the calls of attend() in a forward, with gradients where they are on; each once, found in shapes alone."""
    found: dict[Signature, None] = {}

    def note(call: AttendCall) -> Tensor:
        if call.kernel == "tuned":
            found[Signature.of(*call[:4])] = None
        return call.q.new_empty(*call.q.shape[:3], call.v.shape[-1])

    with standing_in(note):
        forward_in_shapes(
            model, input_shape, device=device, precision=precision, batch=batch, forward=forward
        )
    return list(found)


def time_kernels(signature: Signature, device: torch.device) -> Timing:
    """Measures a forward, and a backward where there is one, on numbers drawn at random."""
    call = _random_call(signature, device)
    with torch.set_grad_enabled(signature.differentiates):
        auto, *others = able_kernels(*call[:4])
        call = _shortened(call, auto)
        ratios = _ratios(call, auto, others)
        faster = {kernel: statistics.median(found) for kernel, found in ratios.items() if _is_faster(found)}
        best = min(faster, key=lambda kernel: faster[kernel], default=auto)
        if best != auto and not _is_faster(_ratios(call, auto, [best])[best]):
            best = auto
    medians: dict[str, float] = {kernel: statistics.median(found) for kernel, found in ratios.items()}
    return Timing(kernel=best, auto=auto, ratios={auto: 1.0, **medians})


def _is_faster(ratios: Sequence[float]) -> bool:
    return statistics.median(ratios) < _WORTH and statistics.quantiles(ratios, n=4)[2] < 1


def _ratios(call: AttendCall, auto: Chosen, others: Sequence[Chosen]) -> dict[Chosen, list[float]]:
    """Of the kernels that can, in each round."""
    auto_s = _warm_s(auto, call)
    kernels = [auto, *(kernel for kernel in others if _can(kernel, call))]
    repeats = max(1, math.ceil(_LEAST_RUN_S / auto_s))
    rounds: list[dict[Chosen, float]] = []
    began = time.perf_counter()
    while len(rounds) < _LEAST_ROUNDS or (len(rounds) < _ROUNDS and time.perf_counter() - began < _MOST_S):
        first = len(rounds) % len(kernels)
        order = kernels[first:] + kernels[:first]
        rounds.append({kernel: _run_s(kernel, call, repeats) for kernel in order})
    return {kernel: [taken[kernel] / taken[auto] for taken in rounds] for kernel in kernels[1:]}


def _warm_s(kernel: Chosen, call: AttendCall) -> float:
    """Seconds of a second run."""
    _run_s(kernel, call, 1)
    return _run_s(kernel, call, 1)


def _shortened(call: AttendCall, kernel: Chosen) -> AttendCall:
    """With half of the batch as often as it takes; all items of the bias stay, or each goes with its item."""
    num_biases = 1 if call.bias is None else len(call.bias)
    while _warm_s(kernel, call) > _LONG_RUN_S:
        batch, is_odd = divmod(len(call.q), 2)
        if is_odd or (batch % num_biases and num_biases != len(call.q)):
            break
        q, k, v = (x.detach()[:batch].requires_grad_(x.requires_grad) for x in call[:3])
        bias = call.bias
        if bias is not None and num_biases > batch:
            num_biases, bias = batch, bias.detach()[:batch].requires_grad_(bias.requires_grad)
        call = call._replace(q=q, k=k, v=v, bias=bias)
    return call


def _can(kernel: Chosen, call: AttendCall) -> bool:
    """Tries: whether a kernel of torch's takes a call depends on more than it tells."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # with the reasons of each that cannot
            _warm_s(kernel, call)
    except RuntimeError:  # torch.OutOfMemoryError is one
        return False
    return True


def _run_s(kernel: Chosen, call: AttendCall, repeats: int) -> float:
    wait_for_device(call.q.device)
    began = time.perf_counter()
    for _ in range(repeats):
        out = run_kernel(kernel, call)
        if out.requires_grad:
            wanted = [x for x in call[:4] if isinstance(x, Tensor) and x.requires_grad]
            torch.autograd.grad(out, wanted, torch.ones_like(out))
    wait_for_device(call.q.device)
    return time.perf_counter() - began


def _random_call(signature: Signature, device: torch.device) -> AttendCall:
    """Its tensors, in memory as most layers have them: heads beside each other."""
    # Of its own: what the run draws must not depend on what was measured.
    draw = partial(
        torch.randn,
        generator=torch.Generator(device).manual_seed(0),
        device=device,
        dtype=getattr(torch, signature.dtype),
    )
    q, k, v = (
        draw(batch, rows, heads, width).transpose(1, 2).requires_grad_(signature.differentiates)
        for batch, heads, rows, width in (signature.q, signature.k, signature.v)
    )
    bias = None if signature.bias is None else draw(signature.bias).requires_grad_(signature.learns_bias)
    return AttendCall(q, k, v, bias, "auto", q.shape[-1] ** -0.5)
