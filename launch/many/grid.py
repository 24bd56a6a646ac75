"""Points of a sweep: a YAML grid becomes overrides, with a name for people and a digest for the folder of each."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from configs.base import ConfigError
from launch.many.config import Settings, SweepConfig

_NOT_OF_THE_RUN = ("tracking",)
"""Sections that say where a run is shown, not what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One combination of a grid's values."""

    settings: Mapping[str, Any]
    """The varied keys alone."""

    @property
    def label(self) -> str:
        """For people: ``optim.lr=0.001 train.seed=1``."""
        return " ".join(overrides_of(self.settings)) or "the recipe itself"


def grid_points(config: SweepConfig) -> list[Point]:
    """Every combination of the grid's values, the last key varying fastest; ConfigError with every malformed entry."""
    mistakes: list[str] = []
    axes = [list(_axis(group, values, mistakes)) for group, values in (config.grid or {}).items()]
    if mistakes:
        raise ConfigError("the grid cannot be read:\n" + "\n".join(f"  {mistake}" for mistake in mistakes))
    points = [Point(settings=_joined(parts)) for parts in itertools.product(*axes)]
    labels = [point.label for point in points]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"the grid has points twice: {'; '.join(twice)}; take the repeated values out")
    return points


def overrides_of(settings: Settings | Mapping[str, Any]) -> list[str]:
    """Settings as ``key=value`` arguments that are read back as the same values."""
    return [f"{key}={_written(value)}" for key, value in settings.items()]


def config_digest(config: Mapping[str, Any]) -> str:
    """Fingerprint of an effective config, without what says where the run is shown: the name of a point's folder."""
    fixed = {key: value for key, value in config.items() if key not in _NOT_OF_THE_RUN}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]


def _axis(group: str, values: Sequence[Any], mistakes: list[str]) -> Iterator[dict[str, Any]]:
    """What one line of the grid contributes: a value of one key, or one of each of several that vary together."""
    keys = [key.strip() for key in group.split(",")]
    if not values:
        mistakes.append(f"grid.{group}: no values; list at least one, or take the key out")
    for value in values:
        if len(keys) == 1:
            yield {keys[0]: value}
        elif isinstance(value, list) and len(value) == len(keys):
            yield dict(zip(keys, value, strict=True))
        else:
            mistakes.append(f"grid.{group}: {value!r} is not a list of {len(keys)} values, one for each key")


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


def _written(value: object) -> str:
    """YAML on one line; text as it is where YAML reads it as that text."""
    if isinstance(value, str):
        try:
            return value if yaml.safe_load(value) == value else json.dumps(value)
        except yaml.YAMLError:
            return json.dumps(value)
    return json.dumps(value)
