"""What a recipe leaves to its checkpoint: the network, and how its images are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs.base import ConfigError
from configs.data import DataConfig
from configs.training import ModelConfig
from finetune.config import FROM_CHECKPOINT, FinetuneConfig
from models.preprocessing import preprocessing_of
from models.weight_source import WeightSource, open_source


def follow_checkpoint(config: FinetuneConfig) -> tuple[FinetuneConfig, WeightSource | None]:
    """The config with the checkpoint's own settings where the recipe gives none, and the checkpoint, if there is one.

    It is made once, before anything is built, and is what the run folder keeps. What a recipe gives always counts.
    """
    if config.checkpoint is None:
        return config, None
    source = open_source(config.checkpoint)
    changes = {
        "model": _followed_model(config.model, source),
        "data": _followed_data(config.data, source.facts),
    }
    return config.model_copy(update=changes), source


def _followed_model(model: ModelConfig, source: WeightSource) -> ModelConfig:
    if model.name != FROM_CHECKPOINT:
        return model
    if source.architecture is None:
        raise ConfigError(
            f"checkpoint {source.reference!r} does not say what network it is of: set model.name, and model.args to "
            "what it was trained with"
        )
    changes: dict[str, Any] = {"name": source.architecture}
    if "attention" not in model.model_fields_set:
        changes["attention"] = source.attention
    return model.model_copy(update=changes)


def _followed_data(data: DataConfig, facts: Mapping[str, Any]) -> DataConfig:
    """A checkpoint that is a bare file has no facts, and decides nothing."""
    if not facts:
        return data
    given = data.model_fields_set
    channels, _, side = facts.get("input_size", (3, 224, 224))
    if given & {"channels", "mean", "std"} or channels not in (1, 3):
        channels = data.channels
    wanted = {
        "channels": int(channels),
        "image_size": int(side),
        **{name: _per_channel(facts.get(name), int(channels)) for name in ("mean", "std")},
        **preprocessing_of(facts)._asdict(),
    }
    followed = {name: value for name, value in wanted.items() if name not in given and value != ()}
    return data.model_copy(update=followed)


def _per_channel(numbers: Any, channels: int) -> tuple[float, ...]:
    """One number for each channel, a grey network's serving all three; () where there are others."""
    known = tuple(map(float, numbers or ()))
    return known * channels if len(known) == 1 else known if len(known) == channels else ()
