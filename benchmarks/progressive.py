"""What layers cost that are not switched on yet: training steps of a ViT by how many layers have their attention.

python -m benchmarks.progressive --out benchmarks/results/progressive.json [--rounds 15] [--batch 8]

Rounds go through all numbers of layers in turn; a ratio is that to the step with all layers in the same round. What a
schedule saves is the mean over its steps. Accuracy stands in configs/pretrain/systems/vit.yaml and progressive.yaml.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.result_file import installed_versions, write_result_file
from configs.attention import ProgressiveConfig
from models.attention import use_attend
from models.progressive import Activation, switched_layers, use_progressive

COLUMNS = {
    "layers": ["layers that are on", "d"],
    "ms": ["a step, ms an image", ".2f"],
    "ratio": ["to all layers", ".3f"],
    "spread": ["lowest-highest of the rounds", "s"],
}
_RUN_STEPS, _OVER = 300, 2 / 3
"""A run, and the part of it in which the layers come in: as in configs/pretrain/systems/progressive.yaml."""


def main(arguments: list[str]) -> int:
    """Measures in rounds and writes medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    progressive = ProgressiveConfig.model_validate({"over": "1 epoch"})
    model = use_progressive(use_attend(timm.create_model(given.model)), progressive)
    images = torch.rand(given.batch, 3, 224, 224)
    rounds = [_round(model, images) for _ in range(given.rounds + 1)][1:]
    ratios = {on: [times[on] / times[len(times)] for times in rounds] for on in rounds[0]}
    rows = [_row(on, rounds, ratios[on], given.batch) for on in rounds[0]]
    left = _mean_ratio({row["layers"]: row["ratio"] for row in rows})
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=f"{given.model}, forward and backward of {given.batch} images at 224 pixels in float32 on the CPU, median "
        f"of {given.rounds} rounds. A run whose layers come in over two thirds of it, the first being on from the "
        f"beginning, takes {left:.3f} of the time of one that has all from the beginning.",
        versions=installed_versions(("torch", "timm")),
        saved=1.0 - left,
    )
    return 0


def _round(model: nn.Module, images: Tensor) -> dict[int, float]:
    """Seconds of a step by the number of layers that are on, from all to the first."""
    layers = switched_layers(model)
    seconds = {}
    for on in range(len(layers), 0, -1):
        for index, layer in enumerate(layers):
            layer.set_share(float(index < on))
        model.zero_grad()
        begin = time.perf_counter()
        model(images).square().sum().backward()
        seconds[on] = time.perf_counter() - begin
    return dict(sorted(seconds.items()))


def _row(on: int, rounds: list[dict[int, float]], ratios: list[float], batch: int) -> dict[str, Any]:
    return {
        "layers": on,
        "ms": 1000 * median(times[on] for times in rounds) / batch,
        "ratio": median(ratios),
        "spread": f"{min(ratios):.3f}-{max(ratios):.3f}",
    }


def _mean_ratio(ratios: dict[int, float]) -> float:
    """Over the steps of a run: a layer that comes in costs what it costs when it is there."""
    plan = Activation(over_steps=round(_RUN_STEPS * _OVER), fade_steps=None, start=1)
    counts = [sum(s > 0 for s in plan.shares(step, num_layers=len(ratios))) for step in range(_RUN_STEPS)]
    return mean(ratios[count] for count in counts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
