"""What a step of each system costs: images/s in training and in inference, and memory, of the rows' trained networks.

python -m benchmarks.attention_cost --out benchmarks/results/attention_cost.json [--rounds 9]

It takes the releases that benchmarks.attention left of its first seed, since what some systems cost depends on what
they have learned and on the images. Rounds go through all rows in turn; a ratio is that to the row's base in the same
round. In each round a row trains a batch at each of four places of its run, since progressive attention costs what is
switched on there, and infers one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.attention import training
from benchmarks.attention_systems import SYSTEMS
from benchmarks.result_file import ROOT, installed_versions, write_result_file
from configs.base import ConfigError
from configs.exit_code import run_main
from configs.load import load_config
from data_pipeline.batch import Batch, normalize
from data_pipeline.index import open_index
from data_pipeline.loader import ShardLoader
from engine.objective import Objective
from engine.penalized import Penalized
from engine.timetable import Timetable
from models.activation_memory import PeakMemory
from models.build import WEIGHTS_FILE
from models.progressive import AttentionSwitches
from pretrain.config import PretrainConfig
from pretrain.run import build_task

COLUMNS = {
    "title": ["system", "s"],
    "train": ["training, images/s", ",.0f"],
    "train_ratio": ["to its base", ".3f"],
    "infer": ["inference, images/s", ",.0f"],
    "infer_ratio": ["to its base", ".3f"],
    "memory": ["memory of a step, MB an image", ".2f"],
}
_PLACES = (0.125, 0.375, 0.625, 0.875)
"""Of a run, in which batches are trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A row's network, as its run left it."""

    config: PretrainConfig
    network: nn.Module
    objective: Objective
    follow: Callable[[float], None]
    """Sets what changes over the run to a place of it, 0 to 1."""


def main(arguments: list[str]) -> int:
    """Measures in rounds and writes medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "attention")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(arguments)
    trained = {row: _trained(row, given.runs / training(row, 0).name) for row in SYSTEMS}
    batches = _batches(next(iter(trained.values())).config)
    memory = {row: _memory(found, batches[0]) for row, found in trained.items()}
    rounds = list(_rounds(trained, batches, given.rounds + 1))[1:]  # the first one warms up
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=[_row(row, rounds, memory[row], len(batches[0])) for row in SYSTEMS],
        note=f"Forward and backward of {len(batches[0])} images of 28 x 28 in float32 on the CPU, "
        f"{torch.get_num_threads()} threads, medians of {given.rounds} rounds; inference without gradient. Memory is "
        "the most that is alive at once in a training step beside weights and their gradients; what is made and "
        "dropped within a fused kernel is not seen.",
        versions=installed_versions(("torch", "timm")),
    )
    return 0


def _trained(row: str, run: Path) -> Trained:
    spec = training(row, 0)
    config = load_config(PretrainConfig, ROOT / spec.recipe, spec.overrides).config
    weights = run / "release" / WEIGHTS_FILE
    if not weights.is_file():
        raise ConfigError(f"no {str(weights)!r}: python -m benchmarks.attention run --rows {row} --seeds 0")
    index = open_index(str(config.data.train))
    network, objective = build_task(config, num_classes=len(index.classes))
    network.load_state_dict(load_file(weights))
    penalties = config.model.attention.regularize
    if penalties:
        objective = Penalized(objective, network, penalties)
    steps = index.num_samples // config.train.global_batch
    return Trained(
        config=config, network=network, objective=objective, follow=_follower(network, config, steps)
    )


def _follower(network: nn.Module, config: PretrainConfig, steps_per_epoch: int) -> Callable[[float], None]:
    timetable = Timetable.of(config, steps_per_epoch=steps_per_epoch)
    if timetable.activation is None:
        return lambda place: None
    switches = AttentionSwitches(network, timetable.activation)
    return lambda place: switches.follow(int(place * timetable.total_steps))


def _batches(config: PretrainConfig) -> list[Batch]:
    train = config.train
    loader = ShardLoader(
        open_index(str(config.data.train)),
        config.data,
        global_batch=train.global_batch,
        seed=train.seed,
        duration=train.duration,
    )
    return list(islice(loader, len(_PLACES)))


def _memory(found: Trained, batch: Batch) -> float:
    """MB an image."""
    found.follow(1.0)
    found.network.train()
    found.objective(found.network, batch).total.backward()  # the gradients of weights are there
    with PeakMemory() as peak:
        found.objective(found.network, batch).total.backward()
    return float(peak.most_bytes) / len(batch) / 1e6


def _rounds(
    trained: dict[str, Trained], batches: Sequence[Batch], count: int
) -> Iterator[dict[str, tuple[float, float]]]:
    """Seconds of a training step and of an inference by row, in rounds that begin with another row each."""
    names = list(trained)
    for number in range(count):
        start = number % len(names)
        yield {name: _turn(trained[name], batches) for name in names[start:] + names[:start]}


def _turn(found: Trained, batches: Sequence[Batch]) -> tuple[float, float]:
    found.network.train()
    begin = time.perf_counter()
    for place, batch in zip(_PLACES, batches, strict=True):
        found.follow(place)
        found.network.zero_grad()
        found.objective(found.network, batch).total.backward()
    trained = time.perf_counter()
    found.network.eval()
    found.follow(1.0)
    data, batch = found.config.data, batches[0]
    begin_inference = time.perf_counter()
    with torch.no_grad():
        found.network(normalize(batch.images, data.mean, data.std))
    return (trained - begin) / len(batches), time.perf_counter() - begin_inference


def _row(
    row: str, rounds: Sequence[dict[str, tuple[float, float]]], memory: float, batch: int
) -> dict[str, Any]:
    system = SYSTEMS[row]
    measured: dict[str, Any] = {"row": row, "title": system.title, "memory": memory}
    for place, key in enumerate(("train", "infer")):
        measured[key] = batch / median(times[row][place] for times in rounds)
        if system.base is not None:
            base = system.base
            measured[f"{key}_ratio"] = median(times[base][place] / times[row][place] for times in rounds)
    return measured


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
