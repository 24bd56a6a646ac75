"""Does it help? What each loss of a distillation brings, on all of Fashion-MNIST, by what is labelled and by seed.

python -m benchmarks.distill run --teacher RELEASE [--rows R ...] [--labels L ...] [--seeds S ...] [--set K=V ...]
python -m benchmarks.distill table

`run` trains and evaluates what has no file in benchmarks/results/distill yet (benchmarks/seeded_runs.py); `table` makes
benchmarks/results/distill.json from those files. What the teacher says is asked once for each seed, by `mirada teach`.

Rows: no teacher; logits; attention; both; both and features. All have the same student and augmentation, and as many
steps as the others of their labels. The teacher sees all images, and the labels of a fraction of them are used;
without a teacher batches hold labelled images only, which is all that such a run can use. In the last setting there are
no other images for anybody.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.distill_table import write_table
from benchmarks.seeded_runs import SeededRun, add_arguments, mirada, read_results, run_missing
from configs.exit_code import run_main
from models.build import WEIGHTS_FILE, resolve_release

RECIPE = "configs/finetune/fashion_mnist_student.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What there is to learn from."""

    fraction: float
    """Of the labels."""
    unlabelled: Literal["keep", "drop"] = "keep"
    """Whether a teacher speaks of images without labels."""
    steps: int
    """Of each run."""


LABELS: Mapping[str, Labels] = {
    "all": Labels(fraction=1.0, steps=9380),
    "10": Labels(fraction=0.1, steps=2345),
    "1": Labels(fraction=0.01, steps=2345),
    "1-alone": Labels(fraction=0.01, unlabelled="drop", steps=1000),
}
"""Some 20 epochs of all images, 5 of all for fewer labels, and 213 of the 600 that have one."""
ROWS: dict[str, tuple[str, ...]] = {
    "none": ("teacher.logits=null", "teacher.attention=null"),
    "logits": ("teacher.attention=null",),
    "attention": ("teacher.logits=null",),
    "both": (),
    "features": ("teacher.features={weight: 1.0, student_stages: [-3]}",),
}
"""What each row changes in the recipe, which has logits and attention. A row without losses keeps its teacher for the
measurement of overlap alone, and trains without it."""
_WITHOUT = "none"
"""The row that asks no teacher."""


def main(arguments: list[str]) -> int:
    """Runs what is missing, or makes the table."""
    given = _parse(arguments)
    if given.action == "table":
        write_table(read_results(given.results), given.out)
        return 0
    for seed in given.seeds:  # one by one, so that what is there when it is stopped has every row
        answers = given.runs / f"answers-{seed}"
        runs = list(_runs(given, seed, answers))
        if any(run.facts["row"] != _WITHOUT for run in runs if not run.is_in(given.results)):
            _ask_teacher(given, seed, answers)
        run_missing(runs, folder=given.runs, results=given.results)
    return 0


def distillation(
    *,
    row: str,
    labels: str,
    seed: int,
    teacher: str,
    settings: Sequence[str] = (),
    answers: Path | None = None,
) -> SeededRun:
    """One training; `settings` of the caller come last."""
    cache = [f"teacher.cache={answers}"] if answers is not None and row != _WITHOUT else []
    there = LABELS[labels]
    steps = f"{there.steps} steps"
    return SeededRun(
        name=f"{row}-{labels}-{seed}",
        program="finetune",
        recipe=RECIPE,
        facts={"row": row, "labels": labels, "seed": seed, "teacher": _digest(teacher)},
        settings=[
            f"data.label_fraction={there.fraction:g}",
            f"data.unlabelled={'drop' if row == _WITHOUT else there.unlabelled}",
            *(f"train.duration={steps}", f"train.evaluate_every={steps}"),
            *(f"train.seed={seed}", f"data.label_seed={seed}", "tracking.uri=off"),
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
    parser.add_argument("--labels", nargs="+", choices=list(LABELS), default=list(LABELS))
    given = parser.parse_args(arguments)
    if given.action == "run" and given.teacher is None:
        parser.error("run needs --teacher")
    return given


def _ask_teacher(given: argparse.Namespace, seed: int, answers: Path) -> None:
    """Writes what is missing of the teacher's answers to the crops of a seed."""
    asked = (f"train.seed={seed}", *ROWS["features"], *given.settings)  # what any row may want to know
    mirada("teach", RECIPE, f"teacher.checkpoint={given.teacher}", *asked, "--out", str(answers))


def _runs(given: argparse.Namespace, seed: int, answers: Path) -> Iterator[SeededRun]:
    for labels in given.labels:
        for row in given.rows:
            yield distillation(
                row=row,
                labels=labels,
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
