"""Rounds of trainings, a turn of each: what the benchmarks of the engine share."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.training_turns import RunningTraining

COLUMNS = {
    "name": ["training", "s"],
    "images_per_s": ["images/s", ",.1f"],
    "spread": ["lowest-highest", "s"],
    "step_s": ["step, s", ".3f"],
    "ratio": ["of the first", ".3f"],
    "middle": ["middle half of the rounds", "s"],
}

_ENDLESS = 1_000_000
"""Steps of a training that is ended when enough of it was seen."""

_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
"""For glibc. Otherwise it maps large activations anew at every step, and a process is up to a tenth slower or faster
than its twin for as long as it lives, by the pages that it happened to get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to train."""

    name: str
    loop: str
    """Module of benchmarks.training_loops."""
    settings: tuple[str, ...] = ()
    ranks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all variants of a benchmark have in common."""

    recipe: str
    global_batch: int
    turn: int
    """Steps of a turn."""
    warmup: int = 0
    """Turns that are not counted: allocations, filling of queues, the follower's start."""
    settings: tuple[str, ...] = ()


def sample_setting(*, global_batch: int, turn: int, warmup: int) -> Setting:
    """A model of 0.56 M parameters on the embedded sample, with nothing but steps."""
    return Setting(
        recipe="configs/pretrain/fashion_mnist_teacher.yaml",
        global_batch=global_batch,
        turn=turn,
        warmup=warmup,
        settings=(
            *("data.train=mirada://sample/train", "data.val=null", "train.ema=null", "train.precision=fp32"),
            *("schedule.warmup=2 steps", "train.checkpoint_every=100000 steps"),
        ),
    )


def parser_of(documentation: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """What every benchmark of trainings is given."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="no round starts that would not end by then"
    )
    parser.add_argument("--quick", action="store_true", help="one round of few steps, to try it")
    return parser


def measure_and_write(
    given: argparse.Namespace,
    variants: Sequence[Variant],
    setting: Setting,
    *,
    note: Callable[[Sequence[Mapping[str, Any]], str], str],
    libraries: Sequence[str],
) -> int:
    """Measures the variants and writes a row for each; `note` is given the rows, and what they are medians of."""
    found = measure_rounds(variants, setting, given)
    rows = rows_of(
        {name: [rate_of(turn, setting) for turn in turns] for name, turns in found.items()}, setting
    )
    count = len(next(iter(found.values())))
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=note(
            rows, f"Medians over {count} rounds; in each, every training has a turn of {setting.turn} steps."
        ),
        versions=installed_versions(libraries),
    )
    return 0


def measure_rounds(
    variants: Sequence[Variant], setting: Setting, given: argparse.Namespace
) -> dict[str, list[list[float]]]:
    """Seconds of every step of every turn, by variant; no round starts that would not end within the minutes given."""
    if given.quick:
        setting = replace(setting, turn=min(setting.turn, 5), warmup=1)
    deadline, rounds = time.monotonic() + given.minutes * 60, 1 if given.quick else given.rounds
    found: dict[str, list[list[float]]] = {variant.name: [] for variant in variants}
    # A follower that is just ending may still write where it was told to.
    folder = tempfile.TemporaryDirectory(prefix="mirada-", ignore_cleanup_errors=True)
    with folder, contextlib.ExitStack() as running:
        trainings = {
            variant.name: running.enter_context(_start(variant, setting, Path(folder.name) / str(number)))
            for number, variant in enumerate(variants)
        }
        names = list(trainings)
        for number in range(-setting.warmup, rounds):
            begun, start = time.monotonic(), number % len(names)  # none is always the first
            for name in names[start:] + names[:start]:
                steps = trainings[name].turn()
                if number >= 0:
                    found[name].append(steps)
                    sys.stderr.write(f"round {number + 1}, {name}: {median(steps):.4f} s a step\n")
            if time.monotonic() + (time.monotonic() - begun) > deadline:
                break
    return found


def training_command(variant: Variant, setting: Setting, *, steps: int, out: Path) -> list[str]:
    """The command that trains for so many steps."""
    start = (
        [sys.executable, "-m"]
        if variant.ranks == 1
        else [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={variant.ranks}", "-m"),
        ]
    )
    return [
        *start,
        f"benchmarks.training_loops.{variant.loop}",
        setting.recipe,
        *(f"train.global_batch={setting.global_batch}", f"train.duration={steps} steps"),
        *(*setting.settings, *variant.settings),
        *("--out", str(out)),
    ]


def training_environment(variant: Variant) -> dict[str, str]:
    """All cores, shared by the ranks; freed memory is kept."""
    threads = max(1, len(os.sched_getaffinity(0)) // variant.ranks)
    return {**os.environ, **_KEEP_MEMORY, "OMP_NUM_THREADS": str(threads)}


def rate_of(steps: Sequence[float], setting: Setting) -> float:
    """Images/s of a turn, from the seconds of its steps."""
    return len(steps) * setting.global_batch / sum(steps)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def middle_half(values: Sequence[float]) -> str:
    """First to third quartile."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (*values, 0.0, *values)
    return f"{low:.3f}-{high:.3f}"


def rows_of(found: Mapping[str, Sequence[float]], setting: Setting) -> list[dict[str, Any]]:
    """A row per variant; ratios are those to the first variant, within a round, and their median."""
    base = next(iter(found.values()))
    rows = []
    for name, rates in found.items():
        to_base = ratios(rates, base)
        rows.append(
            {
                "name": name,
                "images_per_s": median(rates),
                "spread": f"{min(rates):,.1f}-{max(rates):,.1f}",
                "step_s": setting.global_batch / median(rates),
                "ratio": median(to_base),
                "middle": middle_half(to_base),
            }
        )
    return rows


def _start(variant: Variant, setting: Setting, folder: Path) -> RunningTraining:
    return RunningTraining(
        training_command(variant, setting, steps=_ENDLESS, out=folder / "run"),
        folder=folder,
        steps=setting.turn,
        environment=training_environment(variant),
    )
