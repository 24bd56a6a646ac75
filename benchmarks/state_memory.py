"""Measures what each rank holds of weights, gradients, optimizer state and average at ZeRO 0 to 3, against the plan.

python -m benchmarks.state_memory --out benchmarks/results/state_memory.json [--ranks 1 2 4] [--quick]

Real ranks over gloo; what is added up are the tensors that DeepSpeed and the average hold, each storage once: not the
memory of a process, which has the interpreter and the allocator in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.result_file import ROOT, installed_versions, write_result_file
from configs.data import DataConfig
from configs.training import ModelConfig, OptimConfig, RunConfig, TrainConfig, ZeroConfig
from engine.planning.memory import Numbers, state_memory
from engine.sharding.zero import Engine, build_engine
from engine.sharding.zero_config import deepspeed_config
from engine.world import World, close_world, init_world
from models.build import build_model

COLUMNS = {
    "stage": ["ZeRO", "d"],
    "ranks": ["ranks", "d"],
    "planned_mb": ["weights, optimizer state, EMA of a rank: planned, MB", ",.1f"],
    "measured_mb": ["measured, MB", ",.1f"],
    "ratio": ["measured / planned", ".3f"],
}
STATE = ("parameters", "master_weights", "optimizer_state", "ema")
_SIZE, _CLASSES = 32, 10


def main(arguments: list[str]) -> int:
    """Starts the ranks and writes the result file; or, inside, is one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--quick", action="store_true", help="a smaller model")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    model = "vit_tiny_patch16_224" if given.quick else given.model
    if given.measure:
        _measure_here(given.measure, given.model)
        return 0
    rows = [row for ranks in given.ranks for row in measure(model, ranks)]
    rows.sort(key=lambda row: (row["stage"], row["ranks"]))
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"{model} on {_SIZE}x{_SIZE} images, AdamW, an EMA, two micro-batches, fp32; the largest of the ranks, in "
            "1e6 bytes."
        ),
        versions=installed_versions(["torch", "deepspeed"]),
    )
    return 0


def measure(model: str, num_ranks: int) -> list[dict[str, Any]]:
    """A row per ZeRO stage, the largest rank's figures; every figure of every rank under "by_rank"."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={num_ranks}", "-m", "benchmarks.state_memory"]
        subprocess.run([*command, "--model", model, "--measure", folder], check=True, cwd=ROOT)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(num_ranks)]
    rows = []
    for stage in range(4):
        of_ranks = [figures[stage] for figures in found]
        planned = of_ranks[0]["planned"]
        measured = {
            name: max(figures["measured"][name] for figures in of_ranks) for name in (*STATE, "gradients")
        }
        expected, held = (sum(figures[name] for name in STATE) for figures in (planned, measured))
        rows.append(
            {
                "stage": stage,
                "ranks": num_ranks,
                "planned_mb": expected / 1e6,
                "measured_mb": held / 1e6,
                "ratio": held / expected,
                "planned": planned,
                "measured": measured,
            }
        )
    return rows


def _measure_here(folder: Path, name: str) -> None:
    world = init_world()
    figures = [_measure_stage(name, stage, world) for stage in range(4)]
    (folder / f"{world.rank}.json").write_text(json.dumps(figures))
    close_world()


def _measure_stage(name: str, stage: int, world: World) -> dict[str, dict[str, int]]:
    config = RunConfig(
        data=DataConfig(train="none", image_size=_SIZE),
        model=ModelConfig(name=name),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig.model_validate(
            {"duration": "1 steps", "global_batch": 4 * world.size, "micro_batch": 2, "ema": 0.9}
        ),
        zero=ZeroConfig.model_validate({"stage": stage}),
    )
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=_CLASSES, in_chans=3, image_size=_SIZE)
    numbers = Numbers.of(model, config.optim)
    settings = deepspeed_config(config, world, num_parameters=numbers.trainable)
    planned = state_memory(numbers, config, settings, num_ranks=world.size)
    engine = build_engine(model, config, world)
    for step in range(2):  # the first makes the optimizer's state
        for last in (False, True):
            loss = engine.model(torch.randn(2, 3, _SIZE, _SIZE)).square().mean()
            engine.accumulate(loss, last=last)
        gradients = _num_bytes(_gradients(engine, stage))
        engine.step(step, learning_rate=1e-3)
    return {"planned": asdict(planned), "measured": {**_held(engine, stage), "gradients": gradients}}


def _held(engine: Engine, stage: int) -> dict[str, int]:
    """Bytes by kind; what two kinds share counts for the first."""
    optimizer: Any = engine._wrapped.optimizer
    inner = optimizer if stage == 0 else optimizer.optimizer
    kinds: dict[str, Iterable[Tensor]] = {
        "parameters": _weights(engine.module),
        "master_weights": [] if stage == 0 else [p for group in inner.param_groups for p in group["params"]],
        "optimizer_state": [
            value for state in inner.state.values() for value in state.values() if isinstance(value, Tensor)
        ],
        "ema": [] if engine._ema is None else engine._ema.average,
    }
    seen: set[int] = set()
    return {kind: _num_bytes(tensors, seen) for kind, tensors in kinds.items()}


def _weights(module: nn.Module) -> Iterator[Tensor]:
    for tensor in (*module.parameters(), *module.buffers()):
        yield tensor.data
        if hasattr(tensor, "ds_tensor"):  # this rank's part, at stage 3
            yield tensor.ds_tensor


def _gradients(engine: Engine, stage: int) -> Iterator[Tensor]:
    yield from (parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None)
    if stage == 3:
        yield engine._wrapped.optimizer.grad_partitions_flat_buffer
    elif stage > 0:
        for group in engine._wrapped.optimizer.averaged_gradients.values():
            yield from group or ()


def _num_bytes(tensors: Iterable[Tensor], seen: set[int] | None = None) -> int:
    known, total = set() if seen is None else seen, 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total += storage.nbytes()
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
