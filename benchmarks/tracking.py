"""Measures what tracking costs a step: no tracking against MLflow that works, that refuses and that never answers.

python -m benchmarks.tracking --out benchmarks/results/tracking.json [--rounds 12] [--minutes 8] [--quick]

One rank on real shards; every step writes a point, the host is sampled, the follower runs beside training. The four
trainings take turns: each a process of its own, frozen with its follower while the others run.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.result_file import installed_versions, write_result_file
from benchmarks.training_rounds import (
    Variant,
    measure_rounds,
    middle_half,
    parser_of,
    ratios,
    sample_setting,
)

WANTED = 1.05
COLUMNS = {
    "name": ["tracking", "s"],
    "steps": ["steps", ",d"],
    "step_ms": ["median step, ms", ".1f"],
    "tenth_ms": ["slowest tenth from, ms", ".1f"],
    "ratio": ["median, of no tracking", ".3f"],
    "middle": ["middle half of the rounds", "s"],
}
OFF = ("tracking.uri=off", "tracking.system_metrics=false")


def main(arguments: list[str]) -> int:
    """Writes one row per kind of server; returns 1 if steps beside a server that hangs were slower than wanted."""
    given = parser_of(__doc__, rounds=12).parse_args(arguments)
    setting = sample_setting(global_batch=64, turn=30, warmup=12)
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
        found = measure_rounds(variants, setting, given)
    rows = [_row(name, turns, found[variants[0].name]) for name, turns in found.items()]
    write_result_file(
        given.out,
        columns=COLUMNS,
        rows=rows,
        note=(
            f"Steps of a model of 0.56 M parameters, batches of {setting.global_batch}, one rank, a point at "
            f"every step, in turns of {setting.turn} steps. "
            f"At most {WANTED} is wanted beside a server that hangs: {rows[-1]['ratio']:.3f}."
        ),
        versions=installed_versions(["torch", "deepspeed", "mlflow"]),
    )
    return int(rows[-1]["ratio"] > WANTED)


def _row(name: str, turns: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> dict[str, Any]:
    steps = sorted(step for turn in turns for step in turn)
    by_round = ratios([median(turn) for turn in turns], [median(turn) for turn in base])
    return {
        "name": name,
        "steps": len(steps),
        "step_ms": 1e3 * median(steps),
        "tenth_ms": 1e3 * steps[len(steps) * 9 // 10],
        "ratio": median(by_round),
        "middle": middle_half(by_round),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
