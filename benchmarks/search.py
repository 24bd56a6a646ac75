"""Does a search help? Attention that was searched for, beside none, SE everywhere and chance, at equal compute.

python -m benchmarks.search run [--rows R ...] [--seeds S ...] [--trials N] [--set K=V ...]
python -m benchmarks.search table

`run` trains and evaluates, by `mirada search | pretrain | evaluate` on all of Fashion-MNIST, what has no file in
benchmarks/results/search yet: it may be stopped and started at any time. `table` makes benchmarks/results/search.json
from those files.

Rows: the base network; SE with reduction 16 in every stage; a network drawn at random from the space, another for each
seed; the network that one search found (seed 0), which chose by held-out training images. The last two take no more
operations than the second. All are trained from scratch on all training images, with the same steps.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.own_programs import run_mirada
from benchmarks.result_file import RESULTS, ROOT, installed_versions
from benchmarks.search_table import write_table
from configs.attention import GateConfig, GatesConfig
from configs.base import ConfigError
from configs.exit_code import run_main
from configs.load import load_config
from data_pipeline.whole_file import write_whole
from engine.machine import describe_machine
from engine.results.run_record import read_run
from launch.attention_search.result import BEST, PATHS
from launch.attention_search.search import Search, measure_space, read_search
from launch.attention_search.space import Space
from launch.many.grid import overrides_of
from pretrain.config import PretrainConfig

RECIPE = "configs/search/fashion_mnist.yaml"
FOLDER = RESULTS / "search"
ROWS = ("base", "se", "random", "searched")
SEEDS = (0, 1, 2, 3, 4)
TRIALS = 60
_SCRATCH = ("train.duration=8 epochs", "train.evaluate_every=8 epochs", "data.held_out=0")
_PLAIN = "model.attention.search=null"
_SE = GateConfig(name="se", reduction=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training from scratch: a row of the table, of one seed."""

    row: str
    seed: int
    trials: int
    """Networks that the search scores."""
    settings: tuple[str, ...] = ()
    """Of every training."""
    search_settings: tuple[str, ...] = ()
    """Of the supernet's, beside."""

    @property
    def name(self) -> str:
        return f"{self.row}-{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """What all rows have in common; `settings` of the caller come last."""
        return [*_SCRATCH, f"train.seed={self.seed}", "tracking.uri=off", *self.settings]


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
            write_whole(result, json.dumps(_measure(job, given.runs), indent=1) + "\n")
    return 0


def under_limit(space: Space) -> Space:
    """The networks that take no more operations than the base network with SE in every stage."""
    se_everywhere = [space.config.choices.index(_SE)] * len(space.stages)
    return replace(space, max_flops=float(space.flops(se_everywhere)))


def drawn_gates(space: Space, seed: int) -> tuple[GatesConfig, ...]:
    """Of the row "random": those of a network under the limit, each as likely."""
    path = random.Random(f"benchmark {seed}").choice(space.members())
    return space.config.gates(path, stages=space.stages)


def as_overrides(gates: Sequence[GatesConfig]) -> list[str]:
    """Gates as settings of a recipe."""
    groups = [group.model_dump(mode="json", exclude_defaults=True) for group in gates]
    return overrides_of({"model.attention.gates": groups}) if groups else []


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--trials", type=int, default=TRIALS, help="networks that the search scores")
    parser.add_argument("--set", dest="settings", nargs="+", default=(), metavar="KEY=VALUE")
    parser.add_argument(
        "--search-set",
        dest="search_settings",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
        help="of the supernet",
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "search", help="where runs are kept")
    parser.add_argument("--results", type=Path, default=FOLDER, help="where each run's numbers are kept")
    parser.add_argument("--out", type=Path, default=FOLDER.with_suffix(".json"))
    return parser.parse_args(arguments)


def _jobs(given: argparse.Namespace) -> Iterator[Job]:
    """Seed by seed, so that what is there when it is stopped has every row."""
    for seed in given.seeds:
        for row in given.rows:
            yield Job(
                row=row,
                seed=seed,
                trials=given.trials,
                settings=tuple(given.settings),
                search_settings=tuple(given.search_settings),
            )


def _refuse_other_settings(job: Job, result: Path) -> None:
    """What is kept must be what would be made now."""
    kept = json.loads(result.read_text())
    of_search = (job.trials, list(job.search_settings))
    searched = (kept.get("trials", of_search[0]), kept.get("search_settings", of_search[1]))
    if kept["settings"] != job.overrides or searched != of_search:
        raise ConfigError(
            f"{str(result)!r} was made with other settings than this run would be: name another folder with --results "
            "(and --runs), or remove it"
        )


def _measure(job: Job, runs: Path) -> dict[str, Any]:
    """Trains or goes on, evaluates, and tells what came of it."""
    run, searched = runs / job.name, runs / "found"
    search = _search(job, searched)
    found: dict[str, Any] = {}
    recipe, gates = RECIPE, ()
    if job.row == "searched":
        found = {**_found(search), "search_settings": list(job.search_settings)}
        recipe = str(searched / BEST)
    elif job.row == "se":
        gates = (GatesConfig(**_SE.model_dump()),)
    elif job.row == "random":
        gates = drawn_gates(under_limit(measure_space(search)), job.seed)
    overrides = [_PLAIN, *as_overrides(gates), *job.overrides]
    run_mirada("pretrain", recipe, *overrides, "--out", str(run))
    config = load_config(PretrainConfig, run / "config.yaml").config
    scores = run / "evaluation.json"
    run_mirada("evaluate", str(run), "--data", str(config.data.val), "--json", str(scores))
    evaluation = json.loads(scores.read_text())
    (row,) = evaluation["rows"]
    record = read_run(run)
    return {
        "row": job.row,
        "seed": job.seed,
        "num_images": evaluation["num_images"],
        **{key: row[key] for key in ("top1", "parameters", "flops")},
        "gates": [
            group.model_dump(mode="json", exclude_defaults=True) for group in config.model.attention.gates
        ],
        "steps": record.num_steps,
        "minutes": record.seconds / 60,
        "step_s": record.mean("perf/step_s"),
        **found,
        "settings": job.overrides,
        "machine": describe_machine(),
        "versions": installed_versions(("torch", "timm", "deepspeed", "optuna")),
    }


def _search(job: Job, out: Path) -> Search:
    """The one search of all seeds; the caller's settings but for the length of a training are its too."""
    longer = [text for text in job.settings if not text.startswith(("train.duration", "train.seed"))]
    return read_search(
        RECIPE,
        ["tracking.uri=off", *longer, *job.search_settings],
        out=out,
        trials=job.trials,
        workers=1,
        max_flops=None,
    )


def _found(search: Search) -> dict[str, Any]:
    """Searches, or goes on, and tells what was found and what it cost."""
    space = under_limit(measure_space(search))
    limits = ("--trials", str(search.trials), "--max-flops", str(space.max_flops))
    run_mirada("search", search.recipe, *search.overrides, "--out", str(search.out), *limits)
    paths = json.loads((search.out / PATHS).read_text())
    return {
        "trials": search.trials,
        "num_scored": len(paths),
        "num_members": len(space.members()),
        "held_out_top1": paths[0]["top1"],
        "found": paths[0]["name"],
        "search_minutes": read_run(search.supernet).seconds / 60,
    }


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
