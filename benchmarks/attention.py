"""What does each attention bring? The same small networks with each system, on all of Fashion-MNIST, by seed.

python -m benchmarks.attention run [--rows R ...] [--seeds S ...] [--set K=V ...]
python -m benchmarks.attention_cost --out benchmarks/results/attention_cost.json
python -m benchmarks.attention table

`run` trains and evaluates what has no file in benchmarks/results/attention yet (benchmarks/seeded_runs.py). `table`
makes benchmarks/results/attention.json and docs/attention_systems.png of those files, of what a step of each costs, and
of the distilled student of benchmarks/distill.py.

Three networks (benchmarks/attention_networks): a ResNet, a ViT, a Swin; all rows have the same images, steps and
augmentation, and a row differs from its base by the settings that stand here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.attention_systems import SYSTEMS
from benchmarks.attention_table import write_table
from benchmarks.result_file import RESULTS, ROOT
from benchmarks.search import found_gates
from benchmarks.seeded_runs import SeededRun, add_arguments, read_results, run_missing
from configs.exit_code import run_main


def main(arguments: list[str]) -> int:
    """Runs what is missing, or makes table and figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, "attention")
    parser.add_argument("--rows", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--costs", type=Path, default=RESULTS / "attention_cost.json")
    parser.add_argument(
        "--students", type=Path, default=RESULTS / "distill", help="results of benchmarks.distill"
    )
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "attention_systems.png")
    given = parser.parse_args(arguments)
    if given.action == "table":
        students = read_results(given.students) if given.students.is_dir() else []
        results, students = read_results(given.results), [run for run in students if run["labels"] == "all"]
        write_table(results, students, costs=given.costs, out=given.out, figure=given.figure)
        return 0
    runs = list(_runs(given))  # what a row lacks is said before the first one is trained
    run_missing(runs, folder=given.runs, results=given.results)
    return 0


def training(row: str, seed: int, settings: tuple[str, ...] = ()) -> SeededRun:
    """One training; `settings` of the caller come last."""
    system = SYSTEMS[row]
    return SeededRun(
        name=f"{row}-{seed}",
        program="pretrain",
        recipe=system.recipe,
        facts={"row": row, "seed": seed},
        settings=[f"train.seed={seed}", *system.settings, *found_gates(row, seed), *settings],
    )


def _runs(given: argparse.Namespace) -> Iterator[SeededRun]:
    for seed in given.seeds:  # so that what is there when it is stopped has every row
        for row in given.rows:
            yield training(row, seed, tuple(given.settings))


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
