"""Measures what tracking costs a step: no tracking against MLflow that works, that refuses and that never answers.

python -m benchmarks.tracking --out benchmarks/results/tracking.json [--rounds 3] [--minutes 8] [--quick]

One rank on real shards; every step writes a point, the host is sampled, the follower runs beside training. Every
training is a process of its own, and a round has one of each kind.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.training_rounds import Setting, Variant, parser_of, sample_setting, train

WANTED = 1.05
COLUMNS = {
    "name": ["tracking", "s"],
    "steps": ["steps", ",d"],
    "step_ms": ["median step, ms", ".1f"],
    "tenth_ms": ["slowest tenth from, ms", ".1f"],
    "ratio": ["median, of no tracking", ".3f"],
    "ratios": ["round by round", "s"],
}
OFF = ("tracking.uri=off", "tracking.system_metrics=false")


def main(arguments: list[str]) -> int:
    """Writes one row per kind of server; returns 1 if steps beside a server that hangs were slower than wanted."""
    given = parser_of(__doc__, rounds=3).parse_args(arguments)
    steps, skipped = (8, 3) if given.quick else (200, 20)
    setting = sample_setting(global_batch=64, steps=steps, skipped=skipped)
    setting = replace(setting, settings=(*setting.settings, "train.log_every=1"))
    # Connections to it are taken by the kernel, and nobody ever answers.
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        uri = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        variants = (
            Variant(name="none", loop="ours", settings=OFF),
            Variant(name="MLflow, SQLite", loop="ours"),
            Variant(name="server that refuses", loop="ours", settings=("tracking.uri=http://127.0.0.1:9",)),
            Variant(name="server that hangs", loop="ours", settings=(f"tracking.uri={uri}",)),
        )
        rounds = 1 if given.quick else given.rounds
        rows = _measure(variants, setting, rounds=rounds, minutes=given.minutes)
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"Steps of a model of 0.56 M parameters, batches of {setting.global_batch}, one rank, a point at "
            f"every step; the first {setting.skipped} of {setting.steps} steps of each training are left out. "
            f"At most {WANTED} is wanted beside a server that hangs: {rows[-1]['ratio']:.3f}."
        ),
        versions=installed_versions(["torch", "deepspeed", "mlflow"]),
    )
    return int(rows[-1]["ratio"] > WANTED)


def _measure(
    variants: tuple[Variant, ...], setting: Setting, *, rounds: int, minutes: float
) -> list[dict[str, Any]]:
    """Steps of all rounds; no kind is always the first of a round."""
    found: dict[str, list[list[float]]] = {variant.name: [] for variant in variants}
    deadline = time.monotonic() + minutes * 60
    for number in range(rounds):
        begun, start = time.monotonic(), number % len(variants)
        for variant in (*variants[start:], *variants[:start]):
            with tempfile.TemporaryDirectory(prefix="mirada-", ignore_cleanup_errors=True) as folder:
                times = train(variant, setting, Path(folder) / "run")[setting.skipped :]
            found[variant.name].append([after - before for before, after in pairwise(times)])
            sys.stderr.write(f"round {number + 1}, {variant.name}: {median(found[variant.name][-1]):.4f} s\n")
        if time.monotonic() + (time.monotonic() - begun) > deadline:
            break
    return [_row(name, steps, found[variants[0].name]) for name, steps in found.items()]


def _row(name: str, rounds: list[list[float]], base: list[list[float]]) -> dict[str, Any]:
    steps = sorted(step for one in rounds for step in one)
    by_round = [median(one) / median(other) for one, other in zip(rounds, base, strict=True)]
    return {
        "name": name,
        "steps": len(steps),
        "step_ms": 1e3 * median(steps),
        "tenth_ms": 1e3 * steps[len(steps) * 9 // 10],
        "ratio": median(by_round),
        "ratios": ", ".join(f"{ratio:.3f}" for ratio in by_round),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
