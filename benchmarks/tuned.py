"""Measures `kernel: tuned` against `auto`: what is taken for each call of a network, and what that gains.

python -m benchmarks.tuned --out benchmarks/results/tuned.json [--batch 16] [--rounds 15] [--quick]

Of a call the ratio is the one that the choice was made by; networks are timed afterwards, both taking turns, so that a
choice made by luck shows.
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
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.turns import take_turns
from models.attention import use_attend
from models.kernel_choices import Signature, use_choices
from models.kernel_timing import Timing, attention_signatures, time_kernels

COLUMNS = {
    "network": ["network", ""],
    "what": ["what", ""],
    "kind": ["kind", ""],
    "auto": ["auto takes", ""],
    "tuned": ["tuned takes", ""],
    "ratio": ["tuned / auto", ".2f"],
    "others": ["all that were measured, to auto's", ""],
    "seconds": ["measured in, s", ".1f"],
}
NETWORKS = {
    "vit_small_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256,
}
_CPU = torch.device("cpu")


def main(arguments: list[str]) -> int:
    """Tunes each network, times it, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="one image, one round, the first network")
    given = parser.parse_args(arguments)
    batch, rounds = (1, 1) if given.quick else (given.batch, given.rounds)
    names = given.networks[:1] if given.quick else given.networks
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=[row for name in names for row in measure(name, batch, rounds)],
        note=(
            f"{batch} images in fp32 on the CPU with {torch.get_num_threads()} threads. Networks: median ratio of "
            f"{rounds} rounds in which both take turns, after the choice was made."
        ),
        versions=installed_versions(["torch", "timm"]),
    )
    return 0


def measure(name: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of the table: each call of the network, and the network with all choices."""
    torch.manual_seed(0)
    auto = use_attend(timm.create_model(name, num_classes=1000, drop_path_rate=0.0))
    tuned = use_attend(copy.deepcopy(auto), "tuned")
    shape = (3, NETWORKS[name], NETWORKS[name])
    timings: dict[Signature, Timing] = {}
    rows = []
    for signature in _signatures(tuned, shape, batch):
        began = time.perf_counter()
        timings[signature] = time_kernels(signature, _CPU)
        rows.append(_row(name, signature, timings[signature], time.perf_counter() - began))
    use_choices({signature: timing.kernel for signature, timing in timings.items()})
    images = torch.rand(batch, *shape)
    for kind, run in (("training", _step), ("inference", _forward)):
        pairs = take_turns(
            (partial(_seconds, run, tuned, images), partial(_seconds, run, auto, images)), rounds
        )
        ratio = median(ours / theirs for ours, theirs in pairs)
        rows.append({"network": name, "what": "the network", "kind": kind, "ratio": ratio, "rounds": pairs})
    return rows


def _signatures(model: nn.Module, shape: tuple[int, int, int], batch: int) -> list[Signature]:
    found = partial(attention_signatures, model, shape, device=_CPU, precision="fp32", batch=batch)
    training = found()
    with torch.no_grad():
        return training + found()


def _row(name: str, signature: Signature, timing: Timing, seconds: float) -> dict[str, Any]:
    size = " x ".join(map(str, signature.q))
    bias = "" if signature.bias is None else f", bias of {signature.bias[0]}"
    others = [f"{kernel} {ratio:.2f}" for kernel, ratio in timing.ratios.items() if kernel != timing.auto]
    return {
        "network": name,
        "what": f"q of {size}{bias}",
        "kind": "training" if signature.differentiates else "inference",
        "auto": timing.auto,
        "tuned": timing.kernel,
        "ratio": timing.ratios[timing.kernel],
        "others": ", ".join(others),
        "seconds": seconds,
    }


def _seconds(run: Callable[[nn.Module, Tensor], None], network: nn.Module, images: Tensor) -> float:
    began = time.perf_counter()
    run(network, images)
    return time.perf_counter() - began


def _step(network: nn.Module, images: Tensor) -> None:
    network.zero_grad()
    network(images).logsumexp(dim=1).sum().backward()


@torch.no_grad()
def _forward(network: nn.Module, images: Tensor) -> None:
    network(images)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
