"""Measures networks on attend()'s kernels against timm's unfused attention: time, and what waits for the backward pass.

python -m benchmarks.kernels --out benchmarks/results/kernels.json [--batch 8] [--rounds 9] [--quick]

Both networks have the same weights and take turns in one process, each first in half of the rounds; a ratio is the
median over rounds. Kept is the memory of the tensors that autograd holds between forward and backward, weights aside.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.kept_memory import kept_bytes
from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.turns import take_turns
from models.attention import attention_layers, use_attend
from models.kernel_report import layers_by_kernel, report_kernels

COLUMNS = {
    "network": ["network", ""],
    "kernel": ["kernel of its layers", ""],
    "train_unfused_s": ["a step unfused, s", ".3f"],
    "train_s": ["a step, s", ".3f"],
    "train_ratio": ["ratio", ".2f"],
    "infer_unfused_s": ["a forward unfused, s", ".3f"],
    "infer_s": ["a forward, s", ".3f"],
    "infer_ratio": ["ratio ", ".2f"],
    "kept_unfused_mb": ["kept unfused, MB", ",.0f"],
    "kept_mb": ["kept, MB", ",.0f"],
    "difference": ["greatest difference of logits", ".0e"],
}
NETWORKS = {
    "vit_small_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256,
}
Run = Callable[[nn.Module, Tensor], object]


def main(arguments: list[str]) -> int:
    """Measures each network and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="two images, two rounds")
    given = parser.parse_args(arguments)
    batch, rounds = (2, 2) if given.quick else (given.batch, given.rounds)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "fp32"
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=[measure(name, batch, rounds, device, precision) for name in given.networks],
        note=(
            f"{batch} images on {device.type} in {precision}; a step is forward and backward, unfused is timm's "
            f"formula, a ratio is the time on attend() to that unfused, median of {rounds} rounds."
        ),
        versions=installed_versions(["torch", "timm", "flash-attn", "flash-attn-4"]),
        num_threads=torch.get_num_threads(),
    )
    return 0


def measure(name: str, batch: int, rounds: int, device: torch.device, precision: Any) -> dict[str, Any]:
    """A row of the table."""
    torch.manual_seed(0)
    size = NETWORKS[name]
    unfused = timm.create_model(name, num_classes=1000, drop_path_rate=0.0).to(device)
    with torch.no_grad():  # v2's blocks begin as the identity, and would hide a difference
        for parameter in unfused.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    for layer in attention_layers(unfused).values():
        layer.fused_attn = False  # type: ignore[assignment]  # timm's switch
    fused = copy.deepcopy(unfused)
    for layer in attention_layers(fused).values():
        layer.fused_attn = True  # type: ignore[assignment]
    use_attend(fused)
    images = torch.rand(batch, 3, size, size, device=device)
    report = report_kernels(fused, (3, size, size), device=device, precision=precision, batch=batch)
    kernels = layers_by_kernel(report)
    with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
        with torch.no_grad():
            difference = (unfused(images) - fused(images)).abs().max().item()
        kept = [
            kept_bytes(partial(network, images), beside=network.parameters()) / 1e6
            for network in (unfused, fused)
        ]
        trained = _rounds(_step, (unfused, fused), images, rounds)
        inferred = _rounds(_forward, (unfused, fused), images, rounds)
    return {
        "network": name,
        "kernel": ", ".join(kernels),
        **_times("train", trained),
        **_times("infer", inferred),
        "kept_unfused_mb": kept[0],
        "kept_mb": kept[1],
        "difference": difference,
    }


def _times(what: str, rounds: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        f"{what}_unfused_s": median(unfused for unfused, _ in rounds),
        f"{what}_s": median(fused for _, fused in rounds),
        f"{what}_ratio": median(fused / unfused for unfused, fused in rounds),
        f"{what}_rounds": rounds,
    }


def _rounds(
    run: Run, networks: tuple[nn.Module, nn.Module], images: Tensor, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of the unfused and the fused network in each round."""
    unfused, fused = (partial(_seconds, run, network, images) for network in networks)
    return take_turns((unfused, fused), rounds)


def _seconds(run: Run, network: nn.Module, images: Tensor) -> float:
    _wait(images)
    start = time.perf_counter()
    run(network, images)
    _wait(images)
    return time.perf_counter() - start


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()


def _step(network: nn.Module, images: Tensor) -> None:
    network.zero_grad()
    network(images).float().logsumexp(dim=1).sum().backward()


@torch.no_grad()
def _forward(network: nn.Module, images: Tensor) -> None:
    network(images)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
