"""What looking costs: forwards of a ViT with and without maps, and the memory that a map takes by number of tokens.

python -m benchmarks.maps --out benchmarks/results/maps.json [--rounds 15] [--batch 8]

Rounds alternate between the plain forward and those that look, at 224 pixels. Memory is the most that lives at once in
the operations between a block's q, k and its map, traced without the network's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.result_file import installed_versions, write_result_file
from models.activation_memory import PeakMemory
from models.attention import use_attend
from models.attention_maps import Of, open_maps
from models.row_sums import row_of, sum_of_rows

COLUMNS = {
    "what": ["map", "s"],
    "layers": ["layers", "d"],
    "ms": ["forward with it, ms an image", ".1f"],
    "extra_percent": ["more than the plain forward, %", ".2f"],
    "spread": ["lowest-highest of the rounds, %", "s"],
    "mb_4096": ["memory at 4,096 tokens, MB", ".1f"],
    "mb_16384": ["at 16,384 tokens, MB", ".1f"],
    "matrix_mb": ["N x N of one layer at 16,384, MB", ",.0f"],
}
CASES: tuple[tuple[Of, int], ...] = (("row", 1), ("row", 12), ("column_mass", 1), ("rollout", 12))
_TOKENS = (4096, 16384)
_HEADS, _WIDTH = 6, 64
"""Of ViT-S."""


def main(arguments: list[str]) -> int:
    """Measures in rounds and writes medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = use_attend(timm.create_model(given.model).eval())
    images = torch.rand(given.batch, 3, 224, 224)
    plain: list[float] = []
    taken: dict[tuple[Of, int], list[float]] = {case: [] for case in CASES}
    for number in range(given.rounds + 1):
        for case in CASES:
            # Each beside a plain forward of its own, first and second in turn: the machine's speed drifts.
            order = (None, case) if number % 2 else (case, None)
            pair = {which: _forward_s(model, images, which) for which in order}
            if number:  # the first warms up
                plain.append(pair[None])
                taken[case].append(pair[case] / pair[None] - 1)
    base_ms = median(plain) * 1000 / given.batch
    rows = [{"what": "none", "layers": 0, "ms": base_ms}]
    rows += [_row(case, shares, base_ms) for case, shares in taken.items()]
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"{given.model} at 224 pixels, batches of {given.batch}, fp32, {torch.get_num_threads()} threads; medians "
            f"of {given.rounds} rounds, each map beside a plain forward. Memory is of one image and layer (a rollout's "
            f"beside the q and k of its layers); N x N is what {_HEADS} heads of explicit softmax would take."
        ),
        versions=installed_versions(["torch", "timm"]),
    )
    return 0


def _row(case: tuple[Of, int], shares: list[float], base_ms: float) -> dict[str, Any]:
    of, layers = case
    extra = median(shares)
    return {
        "what": of,
        "layers": layers,
        "ms": base_ms * (1 + extra),
        "extra_percent": 100 * extra,
        "spread": f"{100 * min(shares):.1f} to {100 * max(shares):.1f}",
        **{f"mb_{tokens}": _map_bytes(of, tokens) / 1e6 for tokens in _TOKENS},
        "matrix_mb": _HEADS * _TOKENS[-1] ** 2 * 4 / 1e6,
    }


@torch.no_grad()
def _forward_s(model: nn.Module, images: Tensor, case: tuple[Of, int] | None) -> float:
    began = time.perf_counter()
    if case is None:
        model(images)
    else:
        of, layers = case
        asked = (-1,) if of == "rollout" or layers == 1 else tuple(range(layers))
        with open_maps(model, asked, of=of) as maps:
            model(images)
        maps.take()
    return time.perf_counter() - began


@torch.no_grad()
def _map_bytes(of: Of, num_tokens: int) -> int:
    """Bytes at the peak beside q and k, which the block has anyway."""
    with PeakMemory() as peak:
        q, k = (torch.randn(1, _HEADS, num_tokens, _WIDTH) for _ in range(2))
        weights = torch.ones(1, num_tokens)
        if of == "row":
            row_of(q[:, :, 0], k, scale=_WIDTH**-0.5)
        else:
            sum_of_rows(weights, q, k, scale=_WIDTH**-0.5)
    return peak.most_bytes - q.nbytes - k.nbytes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
