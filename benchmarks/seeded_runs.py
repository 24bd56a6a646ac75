"""Trainings of a table, one result file for each row and seed: what benchmarks of accuracy share.

Each is trained and evaluated by the project's own programs. What has its file is not run again, so a benchmark may be
stopped and started at any time, and run twice at once with other rows or seeds (then with train.ranks=1, or the two
share the cores of one run). A file is of the recipe and settings that its weights depend on, in the form of a digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scipy.stats import t as student_t

from benchmarks.result_file import RESULTS, ROOT, installed_versions
from configs.base import ConfigError
from configs.load import load_config
from configs.same_run import fixed_settings
from configs.training import RunConfig
from data_pipeline.whole_file import write_whole
from engine.machine import describe_machine
from engine.results.run_record import RunRecord, read_run
from finetune.config import FinetuneConfig
from launch.programs import program_command, program_environment
from pretrain.config import PretrainConfig

_CONFIGS: Mapping[str, type[RunConfig]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeededRun:
    """One training: a row of a table, of one seed."""

    name: str
    """Of its folder and of its result file."""
    program: Literal["pretrain", "finetune"]
    recipe: str
    facts: Mapping[str, Any]
    """What the table knows it by, "seed" among it."""
    settings: Sequence[str]
    """What it changes in the recipe. A result that was made with other facts, or another config as far as weights
    depend on it, is not taken for its own."""
    local_settings: Sequence[str] = ()
    """The same, of this machine alone: paths."""

    @property
    def overrides(self) -> list[str]:
        """All that it changes in the recipe."""
        return [*self.local_settings, *self.settings]

    @property
    def digest(self) -> str:
        """Fingerprint of what the weights depend on: recipe and settings, without what is of this machine alone.

        What is as by default is left out, so that a setting that is added to the schema changes no digest.
        """
        config = load_config(_CONFIGS[self.program], ROOT / self.recipe, self.settings).config
        text = json.dumps(fixed_settings(config, defaults=False), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def result(self, results: Path) -> Path:
        """Where its numbers are kept."""
        return results / f"{self.name}.json"

    def is_in(self, results: Path) -> bool:
        """Whether they are there. ConfigError where they are of other facts or of another config."""
        path = self.result(results)
        if not path.exists():
            return False
        kept, wanted = json.loads(path.read_text()), {**self.facts, "config": self.digest}
        other = [key for key, value in wanted.items() if kept.get(key) != value]
        if other:
            raise ConfigError(
                f"{str(path)!r} was made with another {' and another '.join(other)} than this run would be (its "
                f"settings: {' '.join(kept.get('settings', []))}; of this run: {' '.join(self.settings)}; of the same "
                f"settings {self.recipe} has changed): name another folder with --results (and --runs), or remove it"
            )
        return True


def add_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """What every such benchmark is given; `folder` is that of its results."""
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2, 3, 4))
    parser.add_argument("--set", dest="settings", nargs="+", default=(), metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / folder, help="where runs are kept")
    parser.add_argument(
        "--results", type=Path, default=RESULTS / folder, help="where each run's numbers are kept"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / f"{folder}.json")


def run_missing(runs: Iterable[SeededRun], *, folder: Path, results: Path) -> None:
    """Trains and evaluates, below `folder`, what has no file in `results`; goes on with what was interrupted."""
    results.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if not run.is_in(results):
            sys.stderr.write(f"{run.name}\n")
            measured = _measure(run, folder / run.name)
            write_whole(run.result(results), json.dumps(measured, indent=1) + "\n")


def read_results(folder: Path) -> Results:
    """What runs have left in `folder`."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise ConfigError(f"{str(folder)!r} holds no result: the action 'run' makes them")
    return found


def mirada(*arguments: str) -> None:
    """Runs one of the project's programs, as a user would."""
    command: Sequence[str] = program_command("launch.cli", arguments)
    subprocess.run(command, env=program_environment(os.environ), cwd=ROOT, check=True)


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean (Student's t); None of a single value."""
    if len(values) < 2:
        return None
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return quantile * float((variance / len(values)) ** 0.5)


def points_gained(results: Results, baseline: Results) -> list[float]:
    """Points of top-1 that a run has over the baseline's, seed by seed where both are there."""
    without = {result["seed"]: result["top1"] for result in baseline}
    return [result["top1"] - without[result["seed"]] for result in results if result["seed"] in without]


def errors_saved(results: Results, baseline: Results) -> list[float]:
    """Percent of the baseline's errors that a run does not make, seed by seed where both are there."""
    without = {result["seed"]: 100.0 - result["top1"] for result in baseline}
    return [
        100.0 * (1.0 - (100.0 - result["top1"]) / without[result["seed"]])
        for result in results
        if without.get(result["seed"])
    ]


def _measure(run: SeededRun, folder: Path) -> dict[str, Any]:
    """Trains or goes on, evaluates, and tells what came of it."""
    digest = run.digest  # of the recipe as it is before the training, not after it
    mirada(run.program, run.recipe, *run.overrides, "--out", str(folder))
    val = load_config(_CONFIGS[run.program], ROOT / run.recipe, run.overrides).config.data.val
    scores = folder / "evaluation.json"
    mirada("evaluate", str(folder), "--data", str(val), "--json", str(scores))
    evaluation = json.loads(scores.read_text())
    (row,) = evaluation["rows"]
    return {
        **run.facts,
        "num_images": evaluation["num_images"],
        **{key: row[key] for key in ("top1", "ece", "parameters", "flops")},
        **_of_record(read_run(folder)),
        "settings": list(run.settings),
        "config": digest,
        "machine": describe_machine(),
        "versions": installed_versions(("torch", "timm", "deepspeed")),
    }


def _of_record(record: RunRecord) -> dict[str, Any]:
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
