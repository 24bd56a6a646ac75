"""Measures `kernel: tuned` against `auto`: what is taken for each call of a network, and what that gains.

python -m benchmarks.tuned --out benchmarks/results/tuned.json [--batch 8] [--rounds 15] [--quick]

Of a call the ratio is the one that the choice was made by; networks are timed afterwards, both taking turns, so that a
choice made by luck shows. They have two blocks in each stage: all calls of the whole network are among theirs. Where
tuned takes auto's kernel for each call there is nothing to time but the look-up, which is timed once.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One of timm's, cut down to two blocks in each stage."""

    size: int
    """Side of an image, in pixels."""
    depth: int | tuple[int, ...]
    """Blocks, of a Swin in each stage."""

    def build(self, name: str) -> nn.Module:
        """With random weights."""
        key = "depth" if isinstance(self.depth, int) else "depths"
        model: nn.Module = timm.create_model(name, num_classes=1000, drop_path_rate=0.0, **{key: self.depth})
        return model


NETWORKS = {
    "vit_small_patch16_224": Network(size=224, depth=2),
    "swin_tiny_patch4_window7_224": Network(size=224, depth=(2, 2, 2, 2)),
    "swinv2_tiny_window8_256": Network(size=256, depth=(2, 2, 2, 2)),
}
_LEAST_ROUNDS = 7
_SAME = "same kernels"
_CPU = torch.device("cpu")


def main(arguments: list[str]) -> int:
    """Tunes each network, times it, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15, help="at most so many")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="one image, one round, the first network")
    given = parser.parse_args(arguments)
    batch, rounds = (1, 1) if given.quick else (given.batch, given.rounds)
    rows: list[dict[str, Any]] = []
    for name in given.networks[:1] if given.quick else given.networks:
        rows += measure(name, batch, rounds, time_same=not any(row["others"] == _SAME for row in rows))
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"{batch} images in fp32 on the CPU with {torch.get_num_threads()} threads. Networks are cut down to two "
            "blocks in each stage; median ratio of rounds in which both take turns, after the choice was made; "
            f"{rounds}, or from {_LEAST_ROUNDS} on as many as it took until the middle half of the ratios lay within "
            f"2 %. With the {_SAME} in every call the two are one network, and the first of these alone is timed: what "
            "the look-up costs."
        ),
        versions=installed_versions(["torch", "timm"]),
    )
    return 0


def measure(name: str, batch: int, rounds: int, *, time_same: bool = True) -> list[dict[str, Any]]:
    """Rows of the table: each call of the network, and the network with all choices.

    With `time_same` the first kind that has auto's kernels throughout is timed all the same.
    """
    torch.manual_seed(0)
    auto = use_attend(NETWORKS[name].build(name))
    tuned = use_attend(copy.deepcopy(auto), "tuned")
    shape = (3, NETWORKS[name].size, NETWORKS[name].size)
    timings: dict[Signature, Timing] = {}
    rows = []
    for signature in _signatures(tuned, shape, batch):
        began = time.perf_counter()
        timings[signature] = time_kernels(signature, _CPU)
        rows.append(_row(name, signature, timings[signature], time.perf_counter() - began))
    use_choices({signature: timing.kernel for signature, timing in timings.items()})
    images = torch.rand(batch, *shape)
    for kind, run in (("training", _step), ("inference", _forward)):
        same = all(row["tuned"] == row["auto"] for row in rows if row["kind"] == kind)
        what = "the network, two blocks a stage"
        row = {"network": name, "what": what, "kind": kind, "others": _SAME if same else None}
        if time_same or not same:
            pairs = take_turns(
                (partial(_seconds, run, tuned, images), partial(_seconds, run, auto, images)),
                rounds,
                least=_LEAST_ROUNDS,
            )
            row |= {"ratio": median(ours / theirs for ours, theirs in pairs), "rounds": pairs}
        time_same = time_same and not same
        rows.append(row)
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
