"""CacheManifest: whose answers a teacher cache holds, about which images varied in which way, and how many there are.

It lies in the cache as `answers.json`. What it says of teacher, data and crops has to be true of its reader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.base import ConfigError
from configs.same_run import fixed_settings
from configs.teacher import ANSWERS_FILE
from data_pipeline.index import ShardIndex
from data_pipeline.order.run_order import RunOrder
from data_pipeline.shard import checksum
from data_pipeline.whole_file import write_whole
from finetune.answers import AnswerFormat
from finetune.config import FinetuneConfig
from finetune.kept_layers import KeptLayers
from models.build import CONFIG_FILE, WEIGHTS_FILE, resolve_release

_VERSION = 2

_ORDER = (
    *(
        "train",
        "mixture",
        "val",
        "mean",
        "std",
        "streams",
        "shuffle_window",
        "cache_size",
        "max_bad_fraction",
    ),
    *(
        "label_fraction",
        "label_seed",
        "unlabelled",
        "held_out",
        "captions",
        "repeats",
        "progressive",
        "eval_crop",
    ),
    *("augment.views", "augment.passes", "augment.mixup", "augment.cutmix", "augment.mix_probability"),
    "augment.mix_switch",
)
"""Settings of the data section that change no pixel of a crop: which of them come, when, and beside what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much there is of a cache."""

    passes: tuple[int, ...]
    """Over each corpus of the index, from the first on."""
    copies: int
    """Of each image in a pass (``data.repeats``)."""

    def covers(self, other: Extent) -> bool:
        """Whether all of `other` is in it."""
        return self.copies >= other.copies and all(
            mine >= theirs for mine, theirs in zip(self.passes, other.passes, strict=True)
        )

    def joined(self, other: Extent) -> Extent:
        """The least that covers both."""
        return Extent(
            passes=tuple(map(max, self.passes, other.passes)), copies=max(self.copies, other.copies)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheManifest:
    """What a cache says of itself."""

    teachers: Mapping[str, str]
    """Digest of each teacher's weights and config by its reference; empty for one that lies in no folder."""
    data: str
    """Digest of the index."""
    crops: Mapping[str, Any]
    """The settings that pixels depend on, by dotted path."""
    answers: AnswerFormat
    how: Mapping[str, Any]
    """What else answers depend on in their last bits: precision, images per forward."""
    wanted: Extent
    taught: Extent | None
    """What is there for sure: a part of what is wanted, while that is still written."""
    command: str
    """That wrote it, and goes on where it was stopped."""

    def write(self, folder: Path) -> None:
        """Into the cache, whole or not at all."""
        content = {"version": _VERSION, **asdict(self), "crops_digest": _digest(self.crops)}
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ANSWERS_FILE, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> CacheManifest | None:
    """None where no cache was begun; ConfigError for a manifest that cannot be read."""
    path = folder / ANSWERS_FILE
    if not path.is_file():
        return None
    try:
        return _parse(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read ({error!r}): delete the cache, and write it again with mirada teach"
        ) from error


def teachers_of(config: FinetuneConfig) -> dict[str, str]:
    """Each teacher's digest by its reference; ConfigError for a folder without a release."""
    roles = config.releases.items()
    return {reference: _release_digest(reference) for role, reference in roles if role.startswith("teacher")}


def crops_of(config: FinetuneConfig) -> dict[str, Any]:
    """The settings that the pixels of a crop depend on; those not known here count among them."""
    augment = config.data.augment
    skipped = tuple(f"data.{name}" for name in _ORDER)
    crops = {
        key: value
        for key, value in fixed_settings(config).items()
        if key == "train.seed" or (key.startswith("data.") and not _is_below(key, skipped))
    }
    if augment.erase or augment.randaugment is not None:  # what comes in from outside is the mean colour
        crops["data.mean"] = list(config.data.mean)
    return crops


def needed_extent(config: FinetuneConfig, index: ShardIndex, *, epochs: int | None = None) -> Extent:
    """What a run of this config, or so many epochs of it, asks for."""
    order = _order_of(config, index)
    limit = config.data.augment.passes
    passes = order.passes_begun(_epochs_begun(config, order) if epochs is None else epochs)
    return Extent(
        passes=passes if limit is None else tuple(min(limit, count) for count in passes),
        copies=config.data.repeats,
    )


def further_epochs(config: FinetuneConfig, index: ShardIndex, manifest: CacheManifest) -> int:
    """How many epochs a cache that served this run up to its end has to be taught about to go on."""
    return 1 + max(_epochs_begun(config, _order_of(config, index)), *manifest.wanted.passes)


def setting_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """A line for each setting that is another."""
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            yield f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"


def teacher_differences(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What is wrong where the teachers are others; a release is known by what is in it, wherever it lies."""
    theirs, ours = (sorted(digest or name for name, digest in found.items()) for found in (there, here))
    if theirs == ours:
        return ""
    return f"it was taught by {_describe(there)}, and this recipe's teacher is {_describe(here)}"


def _order_of(config: FinetuneConfig, index: ShardIndex) -> RunOrder:
    return RunOrder(index, config.data, global_batch=config.train.global_batch, seed=config.train.seed)


def _epochs_begun(config: FinetuneConfig, order: RunOrder) -> int:
    train, per_epoch = config.train, order.batches_per_epoch
    steps = train.duration.steps(steps_per_epoch=per_epoch, global_batch=train.global_batch)
    return max(1, -(-steps // per_epoch))


def _describe(teachers: Mapping[str, str]) -> str:
    return " and ".join(
        f"{name!r}{f' (weights {digest[:12]})' if digest else ''}" for name, digest in teachers.items()
    )


def _release_digest(reference: str) -> str:
    resolved = resolve_release(reference)
    if not resolved.startswith("local-dir:"):
        return ""
    folder = Path(resolved.removeprefix("local-dir:"))
    return _digest([checksum(folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)])


def _digest(content: Mapping[str, Any] | Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _is_below(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _parse(content: dict[str, Any]) -> CacheManifest:
    if content["version"] != _VERSION:
        raise ValueError(f"version {content['version']} is not {_VERSION}")
    answers = content["answers"]
    return CacheManifest(
        teachers=content["teachers"],
        data=content["data"],
        crops=content["crops"],
        answers=AnswerFormat(
            num_classes=answers["num_classes"],
            top=answers["top"],
            maps=_parse_layers(answers["maps"]),
            tokens=_parse_layers(answers["tokens"]),
        ),
        how=content["how"],
        wanted=_parse_extent(content["wanted"]),
        taught=None if content["taught"] is None else _parse_extent(content["taught"]),
        command=content["command"],
    )


def _parse_layers(content: dict[str, Any]) -> KeptLayers:
    return KeptLayers(
        layers=tuple(content["layers"]),
        depths=tuple(content["depths"]),
        shapes=tuple(map(tuple, content["shapes"])),
    )


def _parse_extent(content: dict[str, Any]) -> Extent:
    return Extent(passes=tuple(content["passes"]), copies=content["copies"])
