"""Rounds of trainings, one process group after the other, interleaved: what the benchmarks of the engine share."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result_file import ROOT, installed_versions, write_result_file
from benchmarks.training_loops.clock import read_times

COLUMNS = {
    "name": ["training", "s"],
    "images_per_s": ["images/s", ",.1f"],
    "spread": ["lowest-highest", "s"],
    "step_s": ["step, s", ".3f"],
    "ratio": ["of the first", ".3f"],
    "ratios": ["round by round", "s"],
}


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
    steps: int
    skipped: int
    """First steps, which are not counted: allocations, worker starts, the follower's start."""
    settings: tuple[str, ...] = ()

    @property
    def counted(self) -> int:
        """Steps of a round that count."""
        return self.steps - self.skipped


def sample_setting(*, global_batch: int, steps: int, skipped: int) -> Setting:
    """A model of 0.56 M parameters on the embedded sample, with nothing but steps."""
    return Setting(
        recipe="configs/pretrain/fashion_mnist_teacher.yaml",
        global_batch=global_batch,
        steps=steps,
        skipped=skipped,
        settings=(
            *("data.train=mirada://sample/train", "data.val=null", "train.ema=null"),
            *("schedule.warmup=2 steps", "train.checkpoint_every=1000 steps"),
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
    quick_steps: tuple[int, int] = (8, 3),
) -> int:
    """Measures the variants and writes a row for each; `note` is given the rows, and what they are medians of."""
    if given.quick:
        setting = replace(setting, steps=quick_steps[0], skipped=quick_steps[1])
    rounds = 1 if given.quick else given.rounds
    found = measure_rounds(variants, setting, rounds=rounds, minutes=given.minutes)
    rows = rows_of(found, setting)
    count = len(next(iter(found.values())))
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=note(rows, f"Medians over {count} interleaved rounds of {setting.counted} steps."),
        versions=installed_versions(libraries),
    )
    return 0


def measure_rounds(
    variants: Sequence[Variant], setting: Setting, *, rounds: int, minutes: float
) -> dict[str, list[float]]:
    """Images/s of every variant in every round; no round starts that would not end within `minutes`."""
    deadline = time.monotonic() + minutes * 60
    found: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        begun = time.monotonic()
        start = number % len(variants)  # none is always the first
        for variant in (*variants[start:], *variants[:start]):
            with tempfile.TemporaryDirectory(prefix="mirada-") as folder:
                times = train(variant, setting, Path(folder) / "run")
            counted = times[setting.skipped :]
            rate = (len(counted) - 1) * setting.global_batch / (counted[-1] - counted[0])
            found[variant.name].append(rate)
            sys.stderr.write(f"round {number + 1}, {variant.name}: {rate:,.1f} images/s\n")
        if time.monotonic() + (time.monotonic() - begun) > deadline:
            break
    return found


def train(
    variant: Variant, setting: Setting, out: Path, *, environment: Mapping[str, str] | None = None
) -> list[float]:
    """Runs one training to its end and returns when each of its steps began."""
    start = (
        [sys.executable, "-m"]
        if variant.ranks == 1
        else [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={variant.ranks}", "-m"),
        ]
    )
    settings = [
        f"train.global_batch={setting.global_batch}",
        f"train.duration={setting.steps} steps",
        *setting.settings,
        *variant.settings,
    ]
    threads = str(max(1, len(os.sched_getaffinity(0)) // variant.ranks))
    done = subprocess.run(
        [*start, f"benchmarks.training_loops.{variant.loop}", setting.recipe, *settings, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": threads, **(environment or {})},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{variant.name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return read_times(out)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


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
                "ratios": " ".join(f"{ratio:.3f}" for ratio in to_base),
            }
        )
    return rows
