"""Which settings make two configs the same run: those that its weights depend on; the others may change at a resume."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.base import ConfigError
from configs.training import RunConfig

_FREE = (
    "tracking",
    "train.ranks",
    "train.log_every",
    "train.evaluate_every",
    "train.evaluate_raw",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_nonfinite",
    "train.max_rollbacks",
    "train.watchdog_s",
    "data.workers",
    "data.prefetch",
)
"""Settings that may change when a run is resumed, since its weights do not depend on them."""


def fixed_settings(config: RunConfig, *, defaults: bool = True) -> dict[str, Any]:
    """The settings that the weights depend on, by dotted path; those that are as by default only with `defaults`."""
    settings = config.model_dump(mode="json", exclude_defaults=not defaults)
    return {key: value for key, value in _leaves(settings) if not _is_free(key)}


def refuse_other_run(run_folder: Path, config: RunConfig) -> None:
    """Raises ConfigError unless the folder's config is this one in all that the weights depend on."""
    advice = (
        "resume it with the config it was started with, name another folder with --out, or start afresh with --fresh "
        "(the old contents move to a numbered folder beside it)"
    )
    try:
        former = type(config).model_validate(yaml.safe_load((run_folder / "config.yaml").read_text()))
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"run folder {str(run_folder)!r} belongs to another kind of run ({error}); {advice}"
        ) from error
    open_here = config.undecided
    then, now = (
        {key: value for key, value in fixed_settings(one).items() if not _is_within(key, open_here)}
        for one in (former, config)
    )
    differences = _differences(then, now)
    if differences:
        raise ConfigError(
            f"run folder {str(run_folder)!r} belongs to another config: {'; '.join(differences)}; {advice}"
        )


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} is {then.get(key)!r} there and {now.get(key)!r} here"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_free(key: str) -> bool:
    return _is_within(key, _FREE)


def _is_within(key: str, names: Collection[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def free_sibling(path: Path) -> Path:
    """The first of ``PATH.1``, ``PATH.2`` ... that is not there yet: where the contents of a folder move aside."""
    number = 1
    while (sibling := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return sibling
