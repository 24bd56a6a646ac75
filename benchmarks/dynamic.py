"""What merging tokens saves and costs, by how many are kept: accuracy, images/s of a batch, and that of plain images.

python -m benchmarks.dynamic RELEASE --data DIR --out benchmarks/results/dynamic.json [--keep 0.9 0.8 0.7 0.6 0.5]
python -m benchmarks.dynamic vit_small_patch16_224 --untrained --data DIR --out ...   # speed alone

The release's own weights are used as they are, plain (also where they were trained with merging) and with each
threshold. A threshold is found by halving, so that of the first images that share of tokens is kept, mean over blocks.
Images are then sorted by what is kept of them: easy is the third that keeps the least, busy the one that keeps the
most. Rounds go through all batches in turn, and begin with another network each; a ratio is that to the plain
network's forward (or training step) of the same round.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.result_file import installed_versions, write_result_file
from configs.attention import DynamicConfig
from configs.training import ModelConfig
from data_pipeline.batch import normalize
from data_pipeline.index import open_index
from data_pipeline.loader import EvalLoader
from finetune.candidate import Candidate, load_candidates
from models.attention import wished_kernel
from models.build import (
    CONFIG_FILE,
    SIGNATURE,
    WEIGHTS_FILE,
    build_model,
    input_spec,
    load_release,
    resolve_release,
)
from models.complexity import mean_flops
from models.dynamic import dynamic_blocks, set_threshold, use_dynamic

COLUMNS = {
    "threshold": ["threshold", ".3f"],
    "tokens": ["tokens, mean over blocks", ".1f"],
    "last": ["behind the last block", ".1f"],
    "top1": ["top-1, %", ".2f"],
    "gflops": ["GFLOPs an image", ".3f"],
    "images_per_s": ["images/s", ",.1f"],
    "ratio": ["to plain", ".2f"],
    "easy": ["easy third", ".2f"],
    "busy": ["busy third", ".2f"],
    "easy_tokens": ["tokens, easy", ".1f"],
    "busy_tokens": ["tokens, busy", ".1f"],
    "training": ["training step", ".2f"],
}
_OFF = 2.0
_HALVINGS = 16
_CALIBRATED_ON = 32
_SIZE = 224


def main(arguments: list[str]) -> int:
    """Measures the plain network and each share, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", help="release or run folder; with --untrained an architecture of timm")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--data", required=True, help="folder of indexed shards, or mirada://sample/test")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--images", type=int, help="at most so many; default: all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    candidate = _untrained(given.network) if given.untrained else _load(given.network)
    images, targets = _read(candidate, given.data, given.images)
    bench = _Bench(candidate.model, images, targets, batch=given.batch, rounds=given.rounds)
    rows = [bench.row(_OFF), *(bench.row(bench.threshold_for(share)) for share in given.keep)]
    if given.untrained:
        rows = [{**row, "top1": None} for row in rows]
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"{candidate.name}{' with random weights' if given.untrained else ''}, {len(images):,} images of "
            f"{candidate.spec.size} pixels, float32, {torch.get_num_threads()} threads; the first row is the plain "
            f"network. Batches of {given.batch} images, {given.rounds} rounds in turn, medians; ratios are to the "
            "plain network in the same round (more is faster), of batches of all images, of the third that keeps the "
            "fewest tokens and of the third that keeps the most; of training steps, forward and backward, of all."
        ),
        versions=installed_versions(["torch", "timm"]),
    )
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """All images through the network once."""

    top1: float
    tokens: Tensor
    """float64 [blocks, images]."""


class _Bench:
    """A network beside its plain copy, on images that are held in memory."""

    def __init__(self, model: nn.Module, images: Tensor, targets: Tensor, *, batch: int, rounds: int) -> None:
        self._plain = model
        self._dynamic = use_dynamic(
            copy.deepcopy(model), DynamicConfig(threshold=0.9), kernel=wished_kernel(model)
        )
        self._images, self._targets = images, targets
        self._batch, self._rounds = batch, rounds

    def threshold_for(self, share: float) -> float:
        """With which that share of tokens is kept of the first images."""
        low, high = -1.0, 1.0
        images = self._images[:_CALIBRATED_ON]
        whole = self._tokens(images, _OFF).mean()
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            keeps_more = float(self._tokens(images, middle).mean() / whole) > share
            low, high = (low, middle) if keeps_more else (middle, high)
        return (low + high) / 2

    def row(self, threshold: float) -> dict[str, Any]:
        """What there is to say of a threshold; above 1 it is the plain network."""
        scored = self._score(threshold)
        by_tokens = scored.tokens.mean(dim=0).argsort(stable=True)
        third = len(by_tokens) // 3
        easy, busy = by_tokens[:third], by_tokens[-third:]
        row: dict[str, Any] = {
            "threshold": None if threshold > 1 else threshold,
            "tokens": float(scored.tokens.mean()),
            "last": float(scored.tokens[-1].mean()),
            "by_block": scored.tokens.mean(dim=1).tolist(),
            "top1": scored.top1,
            "gflops": mean_flops(self._dynamic, self._images[: self._batch]) / 1e9,
        }
        if threshold > 1:
            return {**row, "images_per_s": self._plain_rate(), "ratio": 1.0}
        row |= {
            f"{name}_tokens": float(scored.tokens[:, third_].mean())
            for name, third_ in (("easy", easy), ("busy", busy))
        }
        return {**row, **self._speed(threshold, easy=self._images[easy], busy=self._images[busy])}

    def _speed(self, threshold: float, *, easy: Tensor, busy: Tensor) -> dict[str, float]:
        set_threshold(self._dynamic, threshold)
        kinds = {"ratio": self._images, "easy": easy, "busy": busy}
        rounds = []
        for turn in range(self._rounds + 1):  # the first warms up
            batch = _nth(self._images, turn, self._batch)
            timed = {
                "plain": partial(_forward_s, self._plain, batch),
                **{
                    kind: partial(_forward_s, self._dynamic, _nth(images, turn, self._batch))
                    for kind, images in kinds.items()
                },
                "plain training": partial(_step_s, self._plain, batch),
                "training": partial(_step_s, self._dynamic, batch),
            }
            names = list(timed)
            first = turn % len(names)
            rounds.append({name: timed[name]() for name in names[first:] + names[:first]})
        counted = rounds[1:]
        return {
            **{kind: median(seconds["plain"] / seconds[kind] for seconds in counted) for kind in kinds},
            "training": median(seconds["plain training"] / seconds["training"] for seconds in counted),
            "images_per_s": self._batch / median(seconds["ratio"] for seconds in counted),
        }

    def _plain_rate(self) -> float:
        batches = [_nth(self._images, turn, self._batch) for turn in range(self._rounds + 1)]
        return self._batch / median([_forward_s(self._plain, batch) for batch in batches][1:])

    @torch.inference_mode()
    def _score(self, threshold: float) -> _Scored:
        set_threshold(self._dynamic, threshold)
        correct, tokens = 0, []
        for begin in range(0, len(self._images), self._batch):
            part = slice(begin, begin + self._batch)
            guesses = self._dynamic(self._images[part]).argmax(dim=1)
            correct += int((guesses == self._targets[part]).sum())
            tokens.append(_kept(self._dynamic))
        return _Scored(top1=100 * correct / len(self._images), tokens=torch.cat(tokens, dim=1))

    @torch.inference_mode()
    def _tokens(self, images: Tensor, threshold: float) -> Tensor:
        set_threshold(self._dynamic, threshold)
        self._dynamic(images)
        return _kept(self._dynamic)


def _kept(model: nn.Module) -> Tensor:
    return torch.tensor([block.counts for block in dynamic_blocks(model)], dtype=torch.float64)


def _nth(images: Tensor, turn: int, size: int) -> Tensor:
    """The batch of a turn; images come again where there are few."""
    return images[(torch.arange(size) + turn * size) % len(images)]


@torch.inference_mode()
def _forward_s(model: nn.Module, images: Tensor) -> float:
    began = time.perf_counter()
    model(images)
    return time.perf_counter() - began


def _step_s(model: nn.Module, images: Tensor) -> float:
    began = time.perf_counter()
    model(images).square().mean().backward()
    seconds = time.perf_counter() - began
    model.zero_grad()
    return seconds


def load_plain(reference: str) -> nn.Module:
    """A released network that merges nothing, also where it was trained with merging."""
    resolved = resolve_release(reference)
    if not resolved.startswith("local-dir:"):
        return load_release(reference)
    release = Path(resolved.removeprefix("local-dir:"))
    content = json.loads((release / CONFIG_FILE).read_text())
    content.get(SIGNATURE, {}).get("attention", {}).pop("dynamic", None)
    with TemporaryDirectory() as folder:
        (Path(folder) / WEIGHTS_FILE).symlink_to(release / WEIGHTS_FILE)
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(content))
        return load_release(folder)


def _load(reference: str) -> Candidate:
    (candidate,) = load_candidates([reference], device=torch.device("cpu"), load=load_plain)
    candidate.model.requires_grad_(True)
    return candidate


def _untrained(name: str) -> Candidate:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name), num_classes=1000, in_chans=3, image_size=_SIZE).eval()
    return Candidate(name=name, reference=name, model=model, spec=input_spec(model), label_names=())


def _read(candidate: Candidate, location: str, at_most: int | None) -> tuple[Tensor, Tensor]:
    """Normalized images and labels."""
    loader = EvalLoader(open_index(location), candidate.data_config(location), batch_size=100)
    images, targets, num_read = [], [], 0
    for batch in loader:
        counted = batch.weights > 0
        images.append(normalize(batch.images, candidate.spec.mean, candidate.spec.std)[counted])
        targets.append(batch.targets[counted])
        num_read += int(counted.sum())
        if at_most is not None and num_read >= at_most:
            break
    return torch.cat(images)[:at_most], torch.cat(targets)[:at_most]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
