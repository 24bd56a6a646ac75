"""Request: which program, recipe, cluster and folder a user asked for, from the words of one command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.base import ConfigError
from configs.cluster import ClusterConfig
from configs.load import Loaded, load_config, packaged_root
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig

SCHEMAS: dict[str, type[PretrainConfig | FinetuneConfig]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
}
"""The programs that have recipes."""

_PREFIX = "cluster."


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A run that is to be submitted, read and valid in itself; whether it can run here is not looked at yet."""

    program: str
    recipe: str
    overrides: tuple[str, ...]
    """Of the recipe."""
    loaded: Loaded[Any]
    """A PretrainConfig or FinetuneConfig."""
    cluster: ClusterConfig
    out: Path
    """Run folder, absolute."""
    fresh: bool = False
    """Start anew where the folder holds a run."""


def read_request(
    program: str,
    recipe: str,
    overrides: Sequence[str],
    *,
    cluster: str,
    out: Path | None,
    fresh: bool = False,
) -> Request:
    """Reads recipe and cluster file; `overrides` are of both. Raises ConfigError with the mistakes in either."""
    of_recipe, of_cluster, mistakes = split_overrides(program, overrides)
    loaded: Loaded[Any] | None = None
    place: ClusterConfig | None = None
    try:
        loaded = load_recipe(program, recipe, of_recipe)
    except ConfigError as error:
        mistakes.append(str(error))
    try:
        place = load_cluster(cluster, of_cluster)
    except ConfigError as error:
        mistakes.append(str(error))
    if mistakes or loaded is None or place is None:
        raise ConfigError("\n".join(mistakes))
    return Request(
        program=program,
        recipe=recipe,
        overrides=tuple(of_recipe),
        loaded=loaded,
        cluster=place,
        out=Path.cwd() / (out or Path("runs") / Path(recipe).stem),
        fresh=fresh,
    )


def split_overrides(program: str, overrides: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Those of the recipe, those of the cluster file (``nodes=4``, ``cluster.time=2:00:00``) without prefix, and a line
    with a guess for each key that neither has.
    """
    of_recipe, of_cluster, unknown = [], [], []
    recipe_keys = SCHEMAS[program].model_fields
    for text in overrides:
        key = text.partition("=")[0].split(".")[0]
        if text.startswith(_PREFIX):
            of_cluster.append(text.removeprefix(_PREFIX))
        elif key in ClusterConfig.model_fields:
            of_cluster.append(text)
        elif key in recipe_keys or "=" not in text:
            of_recipe.append(text)
        else:
            close = difflib.get_close_matches(key, [*ClusterConfig.model_fields, *recipe_keys], n=1)
            guess = f"did you mean {close[0]!r}?" if close else f"a recipe has {', '.join(recipe_keys)}"
            unknown.append(
                f"{key}: no such key in a recipe of {program} or in a cluster file; {guess}  [command line]"
            )
    return of_recipe, of_cluster, unknown


def load_recipe(program: str, recipe: str | Path, overrides: Sequence[str] = ()) -> Loaded[Any]:
    """The typed config of a program."""
    return load_config(SCHEMAS[program], recipe, overrides)


def load_cluster(path: str | Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """A cluster file: yours, one below configs/, or by name one of configs/cluster (``local``)."""
    shipped = packaged_root() / "configs" / "cluster"
    places = [Path(path), packaged_root() / path, shipped / f"{path}.yaml"]
    chosen = next((place for place in places if place.is_file()), None)
    if chosen is None:
        names = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
        raise ConfigError(f"no cluster file at {str(path)!r}; those that come with Mirada are {names}")
    return load_config(ClusterConfig, chosen, [_with_quotes(text) for text in overrides]).config


def _with_quotes(text: str) -> str:
    """YAML 1.1 would read ``time=2:00:00`` as a number."""
    key, _, value = text.partition("=")
    return f'{key}="{value}"' if key == "time" and value[:1] not in ("'", '"') else text
