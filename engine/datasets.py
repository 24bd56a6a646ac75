"""The data of a run: the index it trains on and the one it is evaluated on, found to fit one another."""

from __future__ import annotations

from configs.base import ConfigError
from configs.data import DataConfig
from configs.training import RunConfig
from data_pipeline.captions import refuse_missing_captions
from data_pipeline.index import ShardIndex, open_index
from data_pipeline.joined import open_training
from data_pipeline.part import held_out


def open_datasets(
    config: RunConfig, *, needs_labels: bool, needs_captions: bool = False
) -> tuple[ShardIndex, ShardIndex | None]:
    """Training and validation index; ConfigError where their classes do not fit one another or the model.

    The latter may be a part of the former that is held out. Without `needs_labels` the training data may have no
    classes, and then nothing can be evaluated; with `needs_captions` it is the names of the validation data's own
    classes that count.
    """
    index = open_training(config.data)
    if needs_captions:
        refuse_missing_captions(index, max_fraction=config.data.max_bad_fraction)
        return index, _open_named(index, config.data)
    known = len(index.classes)
    if needs_labels and not known:
        raise ConfigError(
            f"data.train: {config.data.train!r} has no labels, so there are no classes to learn"
        )
    if needs_labels:
        _refuse_other_classes(config, index)
    data = config.data
    if data.val is None and not data.held_out:
        return index, None
    if not known:
        key, value = ("data.held_out", data.held_out) if data.val is None else ("data.val", data.val)
        raise ConfigError(
            f"data.train: {data.train!r} has no labels, so the features learned on it cannot be probed on "
            f"{key} {value!r}: leave {key} out ({key}={'0' if data.val is None else 'null'})"
        )
    if data.val is None:
        return index, held_out(index, data)
    val_index = open_index(data.val)
    if val_index.classes != index.classes:
        raise ConfigError(
            f"data.val: the class map of {config.data.val!r} ({len(val_index.classes)} classes) is not that of "
            f"{config.data.train!r} ({known} classes); build both with the same classes (--classes)"
        )
    return index, val_index


def _refuse_other_classes(config: RunConfig, index: ShardIndex) -> None:
    known = len(index.classes)
    others = {
        f"{place}.num_classes": network.num_classes
        for place, network in config.networks.items()
        if network.num_classes not in (None, known)
    }
    if others:
        given = " and ".join(f"{place} is {count}" for place, count in others.items())
        raise ConfigError(
            f"{given}, but the class map of {config.data.train!r} has {known} classes "
            f"({', '.join(index.classes[:5])}{' ...' if known > 5 else ''}); leave {' and '.join(others)} out"
        )


def _open_named(index: ShardIndex, data: DataConfig) -> ShardIndex | None:
    if data.val is not None:
        named, key, without = open_index(data.val), f"data.val {data.val!r}", "data.val=null"
    elif data.held_out:
        named, key, without = held_out(index, data), f"data.held_out {data.held_out}", "data.held_out=0"
    else:
        return None
    if not named.classes:
        raise ConfigError(
            f"the images of {key} have no labels, so they cannot be told by the names of classes: leave it out "
            f"({without})"
        )
    return named
