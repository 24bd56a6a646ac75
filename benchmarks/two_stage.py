"""Times two-stage beside full attention by image size: a training step of one image, and the memory that it takes.

python -m benchmarks.two_stage --out benchmarks/results/two_stage.json [--sizes 224 448 896 1792] [--rounds 3]

Rounds alternate between the two. Time is that of forward and backward on this machine's processor; memory is what
autograd keeps for the backward (`torch.autograd.graph.saved_tensors_hooks`), each storage once.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.kept_memory import kept_bytes
from benchmarks.result_file import installed_versions, write_result_file
from configs.attention import TwoStageConfig
from models.attention import use_attend
from models.complexity import count_flops
from models.two_stage import use_two_stage

COLUMNS = {
    "size": ["pixels", "d"],
    "tokens": ["tokens", ",d"],
    "full_s": ["full, s", ".2f"],
    "two_stage_s": ["two-stage, s", ".2f"],
    "speedup": ["full / two-stage", ".2f"],
    "full_us": ["full, us a token", ".0f"],
    "two_stage_us": ["two-stage, us a token", ".0f"],
    "full_mb": ["full keeps, MB", ",.0f"],
    "two_stage_mb": ["two-stage keeps, MB", ",.0f"],
    "full_gflops": ["full, GFLOPs forward", ",.1f"],
    "two_stage_gflops": ["two-stage, GFLOPs forward", ",.1f"],
}
_PATCH = 16


def main(arguments: list[str]) -> int:
    """Measures each size in rounds and writes medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--depth", type=int, default=2, help="blocks: all blocks cost the same")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448, 896, 1792])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    config = TwoStageConfig()
    rows = [_measure(given.model, given.depth, size, config, given.rounds) for size in given.sizes]
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"{given.model} of {given.depth} blocks, patches of {_PATCH} pixels, one image, fp32, "
            f"{torch.get_num_threads()} threads; windows of {config.window} x {config.window} tokens and "
            f"{config.num_global} global ones. Medians of {given.rounds} rounds that alternate; the ratio is the "
            "median over rounds. Kept is what autograd holds between forward and backward."
        ),
        versions=installed_versions(["torch", "timm"]),
    )
    return 0


def _measure(name: str, depth: int, size: int, config: TwoStageConfig, rounds: int) -> dict[str, Any]:
    models = {
        "full": use_attend(_vit(name, depth, size)),
        "two_stage": use_two_stage(_vit(name, depth, size), config),
    }
    image = torch.rand(1, 3, size, size)
    tokens = (size // _PATCH) ** 2
    seconds: dict[str, list[float]] = {kind: [] for kind in models}
    for _ in range(rounds + 1):  # the first warms up
        for kind, model in models.items():
            seconds[kind].append(_step_s(model, image))
    middle = {kind: median(taken[1:]) for kind, taken in seconds.items()}
    ratios = [full / ours for full, ours in zip(seconds["full"][1:], seconds["two_stage"][1:], strict=True)]
    row: dict[str, Any] = {"size": size, "tokens": tokens, "speedup": median(ratios)}
    for kind, model in models.items():
        row |= {
            f"{kind}_s": middle[kind],
            f"{kind}_us": middle[kind] / tokens * 1e6,
            f"{kind}_mb": kept_bytes(partial(model, image), beside=model.parameters()) / 1e6,
            f"{kind}_gflops": count_flops(model, (3, size, size)) / 1e9,
        }
    return row


def _vit(name: str, depth: int, size: int) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, img_size=size, depth=depth, num_classes=10)
    return model


def _step_s(model: nn.Module, image: Tensor) -> float:
    began = time.perf_counter()
    model(image).sum().backward()
    seconds = time.perf_counter() - began
    model.zero_grad()
    return seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
