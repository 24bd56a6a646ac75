"""Does it help? What each loss of a distillation brings, on all of Fashion-MNIST, by fraction of labels and seed.

python -m benchmarks.distill run --teacher RELEASE [--rows R ...] [--fractions F ...] [--seeds S ...] [--set K=V ...]
python -m benchmarks.distill table

`run` trains and evaluates, by `mirada finetune` and `mirada evaluate`, what has no file in benchmarks/results/distill
yet: it may be stopped and started at any time, and twice at once with other rows or seeds (then with --set
train.ranks=1, or the two share the cores of one run). `table` makes
benchmarks/results/distill.json from those files.

Rows: no teacher; logits; attention; both; both and features. All have the same student, steps and augmentation. The
teacher sees all images, and the labels of a fraction of them are used; without a teacher batches hold labelled images
only, which is all that such a run can use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.distill_table import write_table
from benchmarks.own_programs import run_mirada
from benchmarks.result_file import RESULTS, ROOT, installed_versions
from configs.base import ConfigError
from configs.exit_code import run_main
from configs.load import load_config
from data_pipeline.whole_file import write_whole
from engine.machine import describe_machine
from engine.results.run_record import RunRecord, read_run
from finetune.config import FinetuneConfig
from models.build import WEIGHTS_FILE, resolve_release

RECIPE = "configs/finetune/fashion_mnist_ablation.yaml"
FOLDER = RESULTS / "distill"
FRACTIONS = (1.0, 0.1, 0.01)
SEEDS = (0, 1, 2, 3, 4)
ROWS: dict[str, tuple[str, ...]] = {
    "none": ("teacher.logits=null", "teacher.attention=null"),
    "logits": ("teacher.attention=null",),
    "attention": ("teacher.logits=null",),
    "both": (),
    "features": ("teacher.features={weight: 1.0}",),
}
"""What each row changes in the recipe, which has logits and attention. A row without losses keeps its teacher for the
measurement of overlap alone, and trains without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training: a row of the table, of one seed."""

    row: str
    fraction: float
    seed: int
    teacher: str
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.row}-{self.fraction:g}-{self.seed}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """What it changes in the recipe; `settings` of the caller come last."""
        return (f"teacher.checkpoint={self.teacher}", *self.settings_of_run)

    @property
    def settings_of_run(self) -> list[str]:
        """The same without the teacher, whose path is this machine's."""
        return [
            f"data.label_fraction={self.fraction:g}",
            f"data.unlabelled={'drop' if self.row == 'none' else 'keep'}",
            f"train.seed={self.seed}",
            "tracking.uri=off",
            *ROWS[self.row],
            *self.settings,
        ]


def main(arguments: list[str]) -> int:
    """Runs what is missing, or makes the table."""
    given = _parse(arguments)
    if given.action == "table":
        write_table(given.results, given.out)
        return 0
    for job in _jobs(given):
        result = given.results / f"{job.name}.json"
        if result.exists():
            _refuse_other_settings(job, result)
        else:
            sys.stderr.write(f"{job.name}\n")
            result.parent.mkdir(parents=True, exist_ok=True)
            write_whole(result, json.dumps(_measure(job, given.runs / job.name), indent=1) + "\n")
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--teacher", help="its release, or its run folder")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--set", dest="settings", nargs="+", default=(), metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "distill", help="where runs are kept")
    parser.add_argument("--results", type=Path, default=FOLDER, help="where each run's numbers are kept")
    parser.add_argument("--out", type=Path, default=FOLDER.with_suffix(".json"))
    given = parser.parse_args(arguments)
    if given.action == "run" and given.teacher is None:
        parser.error("run needs --teacher")
    return given


def _jobs(given: argparse.Namespace) -> Iterator[Job]:
    """Seed by seed, so that what is there when it is stopped has every row."""
    for seed in given.seeds:
        for fraction in given.fractions:
            for row in given.rows:
                yield Job(
                    row=row,
                    fraction=fraction,
                    seed=seed,
                    teacher=given.teacher,
                    settings=tuple(given.settings),
                )


def _refuse_other_settings(job: Job, result: Path) -> None:
    """What is kept must be what would be made now."""
    kept = json.loads(result.read_text())
    if kept["settings"] != job.settings_of_run or kept["teacher"] != _digest(job.teacher):
        raise ConfigError(
            f"{str(result)!r} was made with other settings or by another teacher than this run would be: "
            "name another folder with --results (and --runs), or remove it"
        )


def _digest(teacher: str) -> str:
    """Fingerprint of a teacher's weights."""
    folder = Path(resolve_release(teacher).removeprefix("local-dir:"))
    return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]


def _measure(job: Job, run: Path) -> dict[str, Any]:
    """Trains or goes on, evaluates, and tells what came of it."""
    run_mirada("finetune", RECIPE, *job.overrides, "--out", str(run))
    val = load_config(FinetuneConfig, ROOT / RECIPE, job.overrides).config.data.val
    scores = run / "evaluation.json"
    run_mirada("evaluate", str(run), "--data", str(val), "--json", str(scores))
    evaluation = json.loads(scores.read_text())
    (row,) = evaluation["rows"]
    return {
        "row": job.row,
        "fraction": job.fraction,
        "seed": job.seed,
        "num_images": evaluation["num_images"],
        **{key: row[key] for key in ("top1", "ece", "parameters")},
        **_of_run(read_run(run)),
        "settings": job.settings_of_run,
        "teacher": _digest(job.teacher),
        "machine": describe_machine(),
        "versions": installed_versions(("torch", "timm", "deepspeed")),
    }


def _of_run(record: RunRecord) -> dict[str, Any]:
    overlap = {
        f"{name}_{when}": record.series[f"val/map_{name}"][place][1]
        for name in ("correlation", "pointing")
        for when, place in (("before", 0), ("after", -1))
        if f"val/map_{name}" in record.series
    }
    return {
        "steps": record.num_steps,
        "minutes": record.seconds / 60,
        "step_s": record.mean("perf/step_s"),
        **overlap,
    }


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
