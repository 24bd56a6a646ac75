"""Does it help? What each loss of a distillation brings, on all of Fashion-MNIST, by fraction of labels and seed.

python -m benchmarks.distill run --teacher RELEASE [--rows R ...] [--fractions F ...] [--seeds S ...] [--set K=V ...]
python -m benchmarks.distill table

`run` trains and evaluates what has no file in benchmarks/results/distill yet (benchmarks/seeded_runs.py); `table` makes
benchmarks/results/distill.json from those files. What the teacher says is asked once for each seed, by `mirada teach`.

Rows: no teacher; logits; attention; both; both and features. All have the same student, steps and augmentation. The
teacher sees all images, and the labels of a fraction of them are used; without a teacher batches hold labelled images
only, which is all that such a run can use.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.distill_table import write_table
from benchmarks.seeded_runs import SeededRun, add_arguments, mirada, read_results, run_missing
from configs.exit_code import run_main
from models.build import WEIGHTS_FILE, resolve_release

RECIPE = "configs/finetune/fashion_mnist_ablation.yaml"
FRACTIONS = (1.0, 0.1, 0.01)
ROWS: dict[str, tuple[str, ...]] = {
    "none": ("teacher.logits=null", "teacher.attention=null"),
    "logits": ("teacher.attention=null",),
    "attention": ("teacher.logits=null",),
    "both": (),
    "features": ("teacher.features={weight: 1.0}",),
}
"""What each row changes in the recipe, which has logits and attention. A row without losses keeps its teacher for the
measurement of overlap alone, and trains without it."""
_KEPT_ANSWERS = frozenset({"logits", "attention", "both"})
"""Rows that need no more of the teacher than its kept answers: of its tokens none are kept."""


def main(arguments: list[str]) -> int:
    """Runs what is missing, or makes the table."""
    given = _parse(arguments)
    if given.action == "table":
        write_table(read_results(given.results), given.out)
        return 0
    for seed in given.seeds:  # one by one, so that what is there when it is stopped has every row
        answers = given.runs / f"answers-{seed}"
        runs = list(_runs(given, seed, answers))
        if any(run.facts["row"] in _KEPT_ANSWERS for run in runs if not run.is_in(given.results)):
            _ask_teacher(given, seed, answers)
        run_missing(runs, folder=given.runs, results=given.results)
    return 0


def distillation(
    *,
    row: str,
    fraction: float,
    seed: int,
    teacher: str,
    settings: Sequence[str] = (),
    answers: Path | None = None,
) -> SeededRun:
    """One training; `settings` of the caller come last."""
    cache = [f"teacher.cache={answers}"] if answers is not None and row in _KEPT_ANSWERS else []
    return SeededRun(
        name=f"{row}-{fraction:g}-{seed}",
        program="finetune",
        recipe=RECIPE,
        facts={"row": row, "fraction": fraction, "seed": seed, "teacher": _digest(teacher)},
        settings=[
            f"data.label_fraction={fraction:g}",
            f"data.unlabelled={'drop' if row == 'none' else 'keep'}",
            *(f"train.seed={seed}", "tracking.uri=off"),
            *(*ROWS[row], *settings),
        ],
        local_settings=[f"teacher.checkpoint={teacher}", *cache],
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, "distill")
    parser.add_argument("--teacher", help="its release, or its run folder")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS)
    given = parser.parse_args(arguments)
    if given.action == "run" and given.teacher is None:
        parser.error("run needs --teacher")
    return given


def _ask_teacher(given: argparse.Namespace, seed: int, answers: Path) -> None:
    """Writes what is missing of the teacher's answers to the crops of a seed."""
    crops = (f"train.seed={seed}", *given.settings)
    mirada("teach", RECIPE, f"teacher.checkpoint={given.teacher}", *crops, "--out", str(answers))


def _runs(given: argparse.Namespace, seed: int, answers: Path) -> Iterator[SeededRun]:
    for fraction in given.fractions:
        for row in given.rows:
            yield distillation(
                row=row,
                fraction=fraction,
                seed=seed,
                teacher=given.teacher,
                settings=given.settings,
                answers=answers,
            )


def _digest(teacher: str) -> str:
    """Fingerprint of a teacher's weights."""
    folder = Path(resolve_release(teacher).removeprefix("local-dir:"))
    return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
