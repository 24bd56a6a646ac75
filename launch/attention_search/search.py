"""A search as its user asked for it: checked before anything is trained, then run here or submitted.

RECIPE -> operations of all paths (OUT/costs.json) -> supernet (OUT/supernet) -> study (OUT/study.log) -> OUT/best.yaml
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.attention import SupernetConfig
from configs.base import ConfigError
from configs.load import Loaded
from configs.same_run import refuse_other_run
from launch.attention_search.space import Space
from launch.local import count_ranks, run_ranks
from launch.many.group import is_finished
from launch.programs import program_command, program_environment
from launch.submission.request import load_recipe
from pretrain.config import PretrainConfig

RECIPE = "recipe.yaml"
COSTS = "costs.json"
SUPERNET = "supernet"
WORKER = "launch.attention_search.worker"
_NEVER_THE_TEST_SET = "data.val=null"
"""The supernet is evaluated on what it holds out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched, by how much, and where."""

    recipe: str
    overrides: tuple[str, ...]
    loaded: Loaded[PretrainConfig]
    """Of the recipe as it was given."""
    out: Path
    trials: int
    workers: int
    max_flops: float | None

    @property
    def supernet(self) -> Path:
        """Run folder of the supernet."""
        return self.out / SUPERNET

    @property
    def supernet_overrides(self) -> tuple[str, ...]:
        """What turns the recipe into the supernet's."""
        return (*self.overrides, _NEVER_THE_TEST_SET)

    def worker_arguments(self, worker: int) -> list[str]:
        """Of one worker of the study."""
        limit = [] if self.max_flops is None else ["--max-flops", repr(self.max_flops)]
        numbers = {"--worker": worker, "--workers": self.workers, "--trials": self.trials}
        return [str(self.out), *(str(word) for pair in numbers.items() for word in pair), *limit]


def read_search(
    recipe: str,
    overrides: Sequence[str],
    *,
    out: Path | None,
    trials: int,
    workers: int,
    max_flops: float | None,
) -> Search:
    """Reads and checks the recipe; ConfigError with all that is wrong with it as one of a search."""
    loaded = load_recipe("pretrain", recipe, overrides)
    config: PretrainConfig = loaded.config
    mistakes = []
    if config.model.attention.search is None:
        mistakes.append(
            "model.attention.search is missing: name the choices, for instance "
            "{choices: [none, {name: se}, {name: eca}]}"
        )
    if not config.data.held_out:
        mistakes.append(
            "data.held_out is 0: paths are compared on training images that are held out; set it to 0.1 or so"
        )
    if not config.is_supervised:
        mistakes.append(
            f"objective.name is {config.objective.name!r}: a search compares classifiers; leave it out"
        )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Search(
        recipe=recipe,
        overrides=tuple(overrides),
        loaded=loaded,
        out=Path.cwd() / (out or Path("runs") / Path(recipe).stem),
        trials=trials,
        workers=workers,
        max_flops=max_flops,
    )


def measure_space(search: Search) -> Space:
    """The paths and what they take; ConfigError where none is under the limit. Writes nothing that stays."""
    with tempfile.TemporaryDirectory(prefix="mirada-") as folder:
        costs = Path(folder) / COSTS
        arguments = [search.recipe, *search.supernet_overrides, "--out", str(costs)]
        # In a process of its own: it builds the network, and torch takes seconds.
        done = subprocess.run(
            program_command("pretrain.path_costs", arguments),
            env=program_environment(os.environ),
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.returncode)  # it has said why
        return read_space(costs, search.loaded.config, max_flops=search.max_flops)


def read_space(costs: Path, config: PretrainConfig, *, max_flops: float | None) -> Space:
    """The same from what was measured before."""
    return Space.of(searched(config), json.loads(costs.read_text()), max_flops=max_flops)


def searched(config: PretrainConfig) -> SupernetConfig:
    """The section that `read_search` found to be there."""
    if config.model.attention.search is None:
        raise ConfigError("model.attention.search is missing")
    return config.model.attention.search


def keep(search: Search, space: Space) -> None:
    """What the workers read: the recipe, every default written out, and what its paths take."""
    (search.out / RECIPE).write_text(search.loaded.yaml())
    (search.out / COSTS).write_text(json.dumps(space.costs) + "\n")


def run_here(search: Search, space: Space, *, ranks: int | None, again: str) -> int:
    """Trains the supernet unless it is finished, runs the study, and returns the exit code."""
    sys.stdout.write(f"{len(space.members()):,} networks of {space.first:,} operations and more\n")
    sys.stdout.flush()
    code = _train_supernet(search, ranks=ranks, again=again)
    if code:
        return code
    keep(search, space)
    alone = replace(search, workers=1)
    return run_ranks(WORKER, alone.worker_arguments(0), num_ranks=1, again=again)


def supernet_is_finished(search: Search) -> bool:
    """Whether its folder holds the release of this very config; ConfigError where it is of another."""
    if not is_finished(search.supernet):
        return False
    refuse_other_run(
        search.supernet, load_recipe("pretrain", search.recipe, search.supernet_overrides).config
    )
    return True


def _train_supernet(search: Search, *, ranks: int | None, again: str) -> int:
    if supernet_is_finished(search):
        return 0
    return run_ranks(
        "pretrain",
        [search.recipe, *search.supernet_overrides, "--out", str(search.supernet)],
        num_ranks=ranks or count_ranks(search.loaded.config.train.ranks),
        out=search.supernet,
        again=again,
    )
