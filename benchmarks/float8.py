"""Measures attention in e4m3 beside float32 and bfloat16: its error, what it keeps for the backward pass, and its time.

python -m benchmarks.float8 --out benchmarks/results/float8.json [--rounds 15] [--quick]

Errors are relative (norm of the difference to norm), of single calls against float64 and of networks against float32.
Kept is what autograd holds between forward and backward (`torch.autograd.graph.saved_tensors_hooks`). A time is that of
forward and backward; float32 on auto's kernel and float8 take turns, and the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from benchmarks.kept_memory import kept_bytes
from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.turns import take_turns
from models.attention import Kernel, attend, use_attend

COLUMNS = {
    "what": ["attention of", ""],
    "error": ["error", ".1%"],
    "error_bf16": ["of bf16", ".2%"],
    "grad_error": ["error of gradients", ".1%"],
    "grad_error_bf16": ["of bf16 ", ".2%"],
    "kept_mb": ["float8 keeps, MB", ",.1f"],
    "kept_fp32_mb": ["fp32 keeps, MB", ",.1f"],
    "kept_bf16_mb": ["bf16 keeps, MB", ",.1f"],
    "ratio": ["time / fp32", ".2f"],
}
NETWORKS = {"vit_small_patch16_224": 8, "swin_tiny_patch4_window7_224": 4}
"""And how many images."""


class Case(NamedTuple):
    """A call of attention as a network makes it."""

    batch: int
    heads: int
    tokens: int
    width: int
    num_windows: int = 0
    """Items of a learned bias."""
    outlier: float = 1.0
    """What a channel of q and k is multiplied with."""


CASES = {
    "a ViT-S/16 at 224 pixels": Case(8, 6, 197, 64),
    "the same, a channel of q and k 20 times as large": Case(8, 6, 197, 64, outlier=20.0),
    "a ViT-S/16 at 384 pixels": Case(4, 6, 577, 64),
    "a ViT of 49 tokens": Case(64, 4, 49, 16),
    "a Swin-T, stage 1, shifted windows": Case(256, 3, 49, 32, num_windows=64),
}


class Computation(NamedTuple):
    """What is run, and what gradients are wanted of."""

    run: Callable[[], Tensor]
    leaves: list[Tensor]

    def seconds(self) -> float:
        """Of a forward and backward."""
        began = time.perf_counter()
        out = self.run()
        torch.autograd.grad(out, self.leaves, torch.ones_like(out))
        return time.perf_counter() - began


class Result(NamedTuple):
    """What a forward and backward gave, in float64."""

    out: Tensor
    grads: Tensor
    """All in one."""


def main(arguments: list[str]) -> int:
    """Measures each call and network, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="two rounds, the first call alone")
    given = parser.parse_args(arguments)
    rounds = 2 if given.quick else given.rounds
    cases = dict(list(CASES.items())[:1]) if given.quick else CASES
    networks = {} if given.quick else NETWORKS
    rows = [measure_call(what, case, rounds) for what, case in cases.items()]
    rows += [measure_network(name, batch, rounds) for name, batch in networks.items()]
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"On the CPU with {torch.get_num_threads()} threads. Calls: normal random numbers, errors against float64. "
            "Networks: all that they keep, errors against float32, bf16 is autocast of all their layers; the time is a "
            f"training step's. Ratios are medians of {rounds} rounds in which both take turns."
        ),
        versions=installed_versions(["torch", "timm"]),
    )
    return 0


def measure_call(what: str, case: Case, rounds: int) -> dict[str, Any]:
    """A row of the table."""
    inputs = _inputs(case)
    exact = _attention([x.detach().double().requires_grad_() for x in inputs], "math")
    bf16 = _attention([x.detach().bfloat16().requires_grad_() for x in inputs], "auto")
    return {
        "what": what,
        **_compare(_attention(inputs, "float8"), _attention(inputs, "auto"), bf16, exact, rounds),
    }


def measure_network(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """A row of the table for a whole network."""
    torch.manual_seed(0)
    network = use_attend(timm.create_model(name, num_classes=10, drop_path_rate=0.0))
    with torch.no_grad():  # at its beginning a network hardly attends
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    rounded, images = use_attend(copy.deepcopy(network), "float8"), torch.rand(batch, 3, 224, 224)
    fp32, bf16 = (_training(network, images, lowered=lowered) for lowered in (False, True))
    what = f"{name}, the whole network, {batch} images"
    return {"what": what, **_compare(_training(rounded, images, lowered=False), fp32, bf16, fp32, rounds)}


def _inputs(case: Case) -> list[Tensor]:
    """q, k and v as layers have them, views of one tensor, and a bias."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    qkv = draw(case.batch, case.tokens, 3, case.heads, case.width)
    qkv[:, :, :2, :, 0] *= case.outlier
    inputs = [x.transpose(1, 2) for x in qkv.unbind(2)]
    if case.num_windows:
        inputs.append(draw(case.num_windows, case.heads, case.tokens, case.tokens))
    return [x.requires_grad_() for x in inputs]


def _attention(inputs: list[Tensor], kernel: Kernel) -> Computation:
    return Computation(partial(attend, *inputs, kernel=kernel), inputs)


def _training(network: nn.Module, images: Tensor, *, lowered: bool) -> Computation:
    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            logits: Tensor = network(images)
        return logits

    return Computation(forward, list(network.parameters()))


def _compare(
    float8: Computation, fp32: Computation, bf16: Computation, exact: Computation, rounds: int
) -> dict[str, Any]:
    wanted, found, yardstick = map(_result, (exact, float8, bf16))
    beside = [leaf for leaf in fp32.leaves + float8.leaves if isinstance(leaf, nn.Parameter)]
    kept = {
        name: kept_bytes(one.run, beside=beside) / 1e6
        for name, one in (("kept_mb", float8), ("kept_fp32_mb", fp32), ("kept_bf16_mb", bf16))
    }
    pairs = take_turns((float8.seconds, fp32.seconds), rounds)
    return {
        "error": _error(found.out, wanted.out),
        "error_bf16": _error(yardstick.out, wanted.out),
        "grad_error": _error(found.grads, wanted.grads),
        "grad_error_bf16": _error(yardstick.grads, wanted.grads),
        **kept,
        "ratio": median(ours / theirs for ours, theirs in pairs),
        "seconds": pairs,
    }


def _result(one: Computation) -> Result:
    """With the gradients of a direction that is always the same."""
    out = one.run()
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad((out.double() * direction).sum(), one.leaves)
    return Result(out.detach().double(), torch.cat([grad.flatten().double() for grad in grads]))


def _error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
