"""Plan: a sweep or a search as it was read from its file, the cluster's file and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.base import ConfigError
from configs.cluster import ClusterConfig
from configs.load import load_config
from launch.many.config import SweepConfig
from launch.many.grid import overrides_of
from launch.submission.request import Request, load_cluster, load_recipe, split_overrides


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the runs of a sweep or a search have in common."""

    name: str
    file: str
    config: SweepConfig
    overrides: tuple[str, ...]
    """Settings of the sweep's file and of the command line, as overrides of the recipe."""
    cluster: ClusterConfig
    out: Path
    """Absolute."""

    def request(self, overrides: Sequence[str], out: Path) -> Request:
        """The request for one run; ConfigError for a recipe that these overrides make invalid."""
        given = (*self.overrides, *overrides)
        return Request(
            program=self.config.program,
            recipe=self.config.recipe,
            overrides=given,
            loaded=load_recipe(self.config.program, self.config.recipe, given),
            cluster=self.cluster,
            out=out,
        )

    def of_parent(self, label: str) -> list[str]:
        """What tells the tracker where a run belongs, and by what name people find it."""
        named = any(text.startswith("tracking.run_name=") for text in self.overrides)
        name = [] if named else overrides_of({"tracking.run_name": label})
        return [*overrides_of({"tracking.parent": str(self.out)}), *name]


def read_plan(file: str, overrides: Sequence[str], *, cluster: str, out: Path | None) -> Plan:
    """Reads the sweep's file and the cluster's; raises ConfigError with the mistakes in either."""
    config: SweepConfig | None = None
    mistakes: list[str] = []
    of_recipe: list[str] = []
    of_cluster: list[str] = []
    try:
        config = load_config(SweepConfig, file).config
        of_recipe, of_cluster, mistakes = split_overrides(config.program, overrides)
        mistakes += _varied_and_fixed(config, of_recipe)
    except ConfigError as error:
        mistakes.append(str(error))
    place = load_place(cluster, of_cluster, mistakes)
    if mistakes or config is None or place is None:
        raise ConfigError("\n".join(mistakes))
    return Plan(
        name=Path(file).stem,
        file=file,
        config=config,
        overrides=(*overrides_of(config.settings), *of_recipe),
        cluster=place,
        out=Path.cwd() / (out or Path("runs") / Path(file).stem),
    )


def load_place(file: str, overrides: Sequence[str], mistakes: list[str]) -> ClusterConfig | None:
    """A cluster file for several runs at once; what is wrong with it goes to `mistakes`."""
    try:
        place = load_cluster(file, overrides)
    except ConfigError as error:
        mistakes.append(str(error))
        return None
    if place.kind == "debug":
        mistakes.append(
            "kind debug becomes the one process it runs, and so cannot run several: use kind local"
        )
    return place


def _varied_and_fixed(config: SweepConfig, of_recipe: Sequence[str]) -> list[str]:
    """Keys of the command line that the sweep varies itself."""
    varied = config.search.space if config.search is not None else config.grid or {}
    keys = {key.strip() for group in varied for key in group.split(",")}
    fixed = [text.partition("=")[0] for text in of_recipe]
    return [f"{key} is what the sweep varies: leave it out  [command line]" for key in fixed if key in keys]
