"""What a sweep, a search and a pipeline are, as their YAML files say it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from configs.base import Section

Settings = dict[str, Any]
"""Dotted keys of a recipe, and their values."""


class RangeConfig(Section):
    """Numbers that a search draws from: whole ones where both ends are whole and `step` is not given as 0.5 or so."""

    low: int | float
    high: int | float
    log: bool = False
    """Draw the logarithm evenly: for learning rates and weight decay."""
    step: int | float | None = Field(default=None, gt=0)
    """Distance of the values that may be drawn. Default: 1 for whole numbers, none for others."""

    @property
    def is_whole(self) -> bool:
        """Whether whole numbers are drawn."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """The values that lie outermost."""
        return self.low, self.high

    @model_validator(mode="after")
    def _can_be_drawn_from(self) -> RangeConfig:
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}; write the smaller number first")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true needs a low above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; leave one of them out")
        return self


class PruneConfig(Section):
    """Stops trials whose metric is below the median of the others' at the same step (Golovin et al. 2017)."""

    startup_trials: int = Field(default=5, ge=0)
    """So many trials run to their end first."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps before which no trial is stopped."""


class SearchConfig(Section):
    """A study of Optuna: which keys vary within which space, and what is to become best."""

    space: dict[str, RangeConfig | list[Any]] = Field(min_length=1)
    """Dotted key of the recipe -> ``{low, high, log, step}``, or the list of values to choose from."""
    metric: str = "val/top1"
    """Name of a value in the event log; a trial is worth the last one."""
    direction: Literal["maximize", "minimize"] = "maximize"
    trials: int = Field(ge=1)
    """Of all workers together."""
    workers: int = Field(default=1, ge=1)
    """Tasks of the job array; each runs one trial after another."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Tree-structured Parzen estimator (Bergstra et al. 2011), or independent draws."""
    seed: int = 0
    prune: PruneConfig | None = PruneConfig()
    """``null``: every trial runs to its end."""

    @model_validator(mode="after")
    def _every_choice_has_values(self) -> SearchConfig:
        together = [key for key in self.space if "," in key]
        if together:
            raise ValueError(
                f"{together[0]!r}: a search varies each key by itself, only a grid several together"
            )
        empty = [key for key, values in self.space.items() if isinstance(values, list) and not values]
        if empty:
            raise ValueError(f"space has no value for {', '.join(empty)}; list at least one")
        return self


class SweepConfig(Section):
    """Runs of one recipe that differ in a few settings: all points of a grid, or the trials of a search."""

    program: Literal["pretrain", "finetune"]
    recipe: str
    """YAML file of the program, yours or one below configs/."""
    settings: Settings = {}
    """Of every run, in place of the recipe's."""
    grid: dict[str, list[Any]] | None = None
    """Dotted key -> its values: every combination is a run. ``"a, b": [[1, 2], [3, 4]]`` varies two keys together."""
    search: SearchConfig | None = None

    @model_validator(mode="after")
    def _either_grid_or_search(self) -> SweepConfig:
        if (self.grid is None) == (self.search is None):
            raise ValueError("give either 'grid' (every combination) or 'search' (trials of a study)")
        varied = self.search.space if self.search is not None else self.grid or {}
        keys = [key.strip() for group in varied for key in group.split(",")]
        twice = sorted({key for key in keys if keys.count(key) > 1 or key in self.settings})
        if twice:
            raise ValueError(
                f"{', '.join(twice)}: set twice; a key is either varied, once, or among the settings"
            )
        return self


def _is_a_stage_name(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"a stage's name is a word of letters, digits and _, not {name!r}")
    return name


TRAINING = ("pretrain", "finetune")


class StageConfig(Section):
    """One program of a pipeline."""

    program: Literal["pretrain", "finetune", "teach", "evaluate", "attend", "export", "report"]
    recipe: str | None = None
    """Of pretrain and finetune."""
    settings: Settings = {}
    """In place of the recipe's; values may name what other stages make: ``${teacher.release}``."""
    arguments: list[str] = []
    """Of the other programs, as on their command line; they may name what other stages make, too."""
    after: list[str] = []
    """Stages to wait for beside those that are named."""
    cluster: dict[str, Any] = {}
    """Keys of the cluster file that are others for this stage: ``{nodes: 4, time: 2-00:00:00}``."""

    @property
    def is_training(self) -> bool:
        """Whether it is a run, with a recipe and a release."""
        return self.program in TRAINING

    @model_validator(mode="after")
    def _has_what_its_program_takes(self) -> StageConfig:
        if self.is_training and self.recipe is None:
            raise ValueError(f"{self.program} needs a recipe")
        if self.is_training and self.arguments:
            raise ValueError(f"{self.program} takes settings (key: value), not arguments")
        if not self.is_training and (self.recipe is not None or self.settings):
            raise ValueError(
                f"{self.program} takes arguments, as on its command line, and neither recipe nor settings"
            )
        return self


class PipelineConfig(Section):
    """Programs that build on each other's results."""

    stages: dict[Annotated[str, AfterValidator(_is_a_stage_name)], StageConfig] = Field(min_length=1)
    """In any order; each starts when those it builds on have ended well."""
