"""Space: the paths of a supernet under a limit of operations, as settings of a study and as words for people."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.attention import GateConfig, SupernetConfig, choice_name
from configs.base import ConfigError
from launch.many.config import SearchConfig

_MOST_PATHS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """For each stage the choices, and what each takes; a path is the number of a choice for each stage."""

    config: SupernetConfig
    stages: tuple[int, ...]
    """Their numbers."""
    first: int
    """Operations of an image's forward where each stage has its first choice."""
    more: tuple[tuple[int, ...], ...]
    """[stage][choice]: what this choice takes more than the first."""
    max_flops: float | None

    @classmethod
    def of(cls, config: SupernetConfig, costs: Mapping[str, Any], *, max_flops: float | None) -> Space:
        """`costs` are what `pretrain.path_costs` wrote; ConfigError where no path is under the limit."""
        space = cls(
            config=config,
            stages=tuple(costs["stages"]),
            first=int(costs["first"]),
            more=tuple(tuple(more) for more in costs["more"]),
            max_flops=max_flops,
        )
        space._check()
        return space

    @property
    def costs(self) -> dict[str, Any]:
        """As `of` takes them."""
        return {"stages": self.stages, "first": self.first, "more": self.more}

    def flops(self, path: Sequence[int]) -> int:
        """Operations of an image's forward."""
        return self.first + sum(more[choice] for more, choice in zip(self.more, path, strict=True))

    def members(self) -> list[tuple[int, ...]]:
        """All paths under the limit."""
        paths = itertools.product(*(range(len(more)) for more in self.more))
        return [path for path in paths if self.max_flops is None or self.flops(path) <= self.max_flops]

    def study(self, *, trials: int, workers: int, seed: int) -> SearchConfig:
        """The study that looks for the best path: every one that is tried is scored to its end."""
        choices = list(map(_as_json, self.config.choices))
        return SearchConfig(
            space={_name(stage): choices for stage in self.stages},
            metric="top1",
            trials=trials,
            workers=workers,
            seed=seed,
            prune=None,
        )

    def settings(self, path: Sequence[int]) -> dict[str, Any]:
        """A path as the study has it."""
        chosen = (self.config.choices[number] for number in path)
        return {_name(stage): _as_json(choice) for stage, choice in zip(self.stages, chosen, strict=True)}

    def path(self, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """The path that the study's settings are."""
        choices = list(map(_as_json, self.config.choices))
        return tuple(choices.index(settings[_name(stage)]) for stage in self.stages)

    def describe(self, path: Sequence[int]) -> str:
        """For people: ``stage 1 none, stage 2 se reduction 16``."""
        names = (choice_name(self.config.choices[number]) for number in path)
        return ", ".join(f"{_name(stage)} {name}" for stage, name in zip(self.stages, names, strict=True))

    def _check(self) -> None:
        num_paths = len(self.config.choices) ** len(self.stages)
        if num_paths > _MOST_PATHS:
            raise ConfigError(
                f"model.attention.search: {len(self.config.choices)} choices in {len(self.stages)} stages are "
                f"{num_paths:,} networks, and at most {_MOST_PATHS:,} can be searched: take choices or stages out"
            )
        cheapest = tuple(min(range(len(more)), key=lambda choice: more[choice]) for more in self.more)
        least = self.flops(cheapest)
        if self.max_flops is not None and least > self.max_flops:
            raise ConfigError(
                f"--max-flops {self.max_flops:.6g}: no network of model.attention.search takes so few; the cheapest "
                f"({self.describe(cheapest)}) takes {least:,} for an image: raise the limit, add cheaper choices "
                "(none), or take a smaller network"
            )


def _name(stage: int) -> str:
    return f"stage {stage}"


def _as_json(choice: GateConfig | None) -> dict[str, Any] | None:
    return None if choice is None else choice.model_dump(mode="json", exclude_none=True)
