"""Searches for the attention of each stage of the ResNet of benchmarks/attention.py, whose rows train what is found.

python -m benchmarks.search find [--trials N] [--set K=V ...]
python -m benchmarks.attention run --rows cnn se random searched
python -m benchmarks.search table

`find` is `mirada search` on all of Fashion-MNIST: it chooses by held-out training images, among networks that take no
more operations than SE with reduction 16 in every stage. benchmarks/results/search_found.json keeps what it found, and
networks under the same limit that were drawn at random, another for each seed: what a search has to beat.
`table` makes benchmarks/results/search.json of the results of those rows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.result_file import RESULTS, ROOT
from benchmarks.search_table import write_table
from benchmarks.seeded_runs import mirada, read_results
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
FOUND = RESULTS / "search_found.json"
SEEDS = (0, 1, 2, 3, 4)
_SE = GateConfig(name="se", reduction=16)


def main(arguments: list[str]) -> int:
    """Searches, or makes the table."""
    given = _parse(arguments)
    if given.action == "table":
        write_table(read_results(given.results), json.loads(given.found.read_text()), given.out)
        return 0
    search = read_search(
        RECIPE,
        ["tracking.uri=off", *given.settings],
        out=given.runs,
        trials=given.trials,
        workers=1,
        max_flops=None,
    )
    write_whole(given.found, json.dumps(_found(search, given.settings), indent=1) + "\n")
    return 0


def found_gates(row: str, seed: int, found: Path = FOUND) -> list[str]:
    """The gates of the rows "searched" and "random", as settings of a recipe; none of another row."""
    if row not in ("searched", "random"):
        return []
    if not found.is_file():
        raise ConfigError(f"there is no {str(found)!r}: python -m benchmarks.search find")
    content = json.loads(found.read_text())
    drawn = content["random"]
    if row == "random" and str(seed) not in drawn:
        raise ConfigError(
            f"{str(found)!r} has networks drawn at random for the seeds {', '.join(drawn)}, not for {seed}: leave the "
            "row 'random' out, or give --seeds among these"
        )
    gates = content["gates"] if row == "searched" else drawn[str(seed)]
    return overrides_of({"model.attention.gates": gates}) if gates else []


def under_limit(space: Space) -> Space:
    """The networks that take no more operations than the base network with SE in every stage."""
    se_everywhere = [space.config.choices.index(_SE)] * len(space.stages)
    return replace(space, max_flops=float(space.flops(se_everywhere)))


def drawn_gates(space: Space, seed: int) -> tuple[GatesConfig, ...]:
    """Those of a network under the limit, each as likely."""
    path = random.Random(f"benchmark {seed}").choice(space.members())
    return space.config.gates(path, stages=space.stages)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["find", "table"])
    parser.add_argument("--trials", type=int, default=60, help="networks that the search scores")
    parser.add_argument(
        "--set", dest="settings", nargs="+", default=(), metavar="KEY=VALUE", help="of the supernet"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "search", help="where it is kept")
    parser.add_argument("--found", type=Path, default=FOUND)
    parser.add_argument("--results", type=Path, default=RESULTS / "attention", help="of benchmarks.attention")
    parser.add_argument("--out", type=Path, default=RESULTS / "search.json")
    return parser.parse_args(arguments)


def _found(search: Search, settings: Sequence[str]) -> dict[str, Any]:
    """Searches, or goes on, and tells what was found, what it cost, and what chance gives."""
    space = under_limit(measure_space(search))
    limits = ("--trials", str(search.trials), "--max-flops", str(space.max_flops))
    mirada("search", search.recipe, *search.overrides, "--out", str(search.out), *limits)
    best = load_config(PretrainConfig, search.out / BEST).config
    paths = json.loads((search.out / PATHS).read_text())
    supernet = read_run(search.supernet)
    return {
        "gates": _listed(best.model.attention.gates),
        "found": paths[0]["name"],
        "held_out_top1": paths[0]["top1"],
        "num_scored": len(paths),
        "num_members": len(space.members()),
        "max_flops": space.max_flops,
        "supernet_minutes": supernet.seconds / 60,
        "supernet_steps": supernet.num_steps,
        "random": {str(seed): _listed(drawn_gates(space, seed)) for seed in SEEDS},
        "settings": list(settings),
        "machine": describe_machine(),
    }


def _listed(gates: Sequence[GatesConfig]) -> list[dict[str, Any]]:
    return [group.model_dump(mode="json", exclude_defaults=True) for group in gates]


if __name__ == "__main__":
    run_main(lambda: main(sys.argv[1:]))
