"""CachedTeacher: answers that `mirada teach` wrote, in the place of the teacher that gave them.

    worker: (pass, copy, sample) -> Sidecar -> Batch.records      device: records -> AnswerFormat.read -> TeacherOutput

Crops are a function of (seed, pass, copy, sample), so an answer belongs to exactly the crop that the student sees,
with any number of ranks and workers, in any order, and after any interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from configs.base import ConfigError
from data_pipeline.batch import Batch
from data_pipeline.index import ShardIndex
from data_pipeline.sidecar import Sidecar, parts_of
from finetune.answers import AnswerFormat
from finetune.cache_manifest import (
    CacheManifest,
    Extent,
    crops_of,
    further_epochs,
    needed_extent,
    read_manifest,
    setting_differences,
    teacher_differences,
    teachers_of,
)
from finetune.config import FinetuneConfig
from finetune.teacher import TeacherOutput


class CachedTeacher:
    """Reads what lies beside each image of a batch; holds no network."""

    def __init__(
        self,
        answers: AnswerFormat,
        sidecar: Sidecar,
        *,
        attention_layers: Sequence[int] = (),
        token_layers: Sequence[int] = (),
        temperature: float = 1.0,
    ) -> None:
        """It tells maps of `attention_layers` and features of `token_layers`; `temperature` is that of logits' loss."""
        self.sidecar = sidecar
        """What the loader has to put beside the images."""
        self._answers = answers
        self._maps = tuple(map(answers.maps.layers.index, attention_layers))
        self._tokens = tuple(map(answers.tokens.layers.index, token_layers))
        self._temperature = temperature

    @property
    def attention_depths(self) -> tuple[float, ...]:
        """How far through the teacher's network each layer is that it shows, 0 to 1."""
        return tuple(self._answers.maps.depths[place] for place in self._maps)

    @property
    def token_depths(self) -> tuple[float, ...]:
        """The same of the layers whose features it tells."""
        return tuple(self._answers.tokens.depths[place] for place in self._tokens)

    @property
    def token_widths(self) -> tuple[int, ...]:
        """D of each of them."""
        return tuple(self._answers.tokens.shapes[place][0] for place in self._tokens)

    def observe(self, batch: Batch) -> TeacherOutput:
        """What the teacher said about these crops, on the device of the batch."""
        if batch.records is None:
            raise ValueError("the batch comes without records: give the sidecar to its loader (read_beside)")
        return self._answers.read(
            batch.records, temperature=self._temperature, maps=self._maps, tokens=self._tokens
        )


def open_teacher_cache(config: FinetuneConfig, index: ShardIndex) -> CachedTeacher:
    """The answers in ``teacher.cache``; ConfigError with all reasons why this run cannot learn from them."""
    if config.teacher is None or config.teacher.cache is None:
        raise ValueError("the recipe names no teacher.cache")
    folder = Path(config.teacher.cache)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"teacher.cache: no answers in {str(folder)!r}; write them with: mirada teach RECIPE --out {folder}"
        )
    maps, tokens = config.teacher.attention_layers, config.teacher.token_layers
    mistakes = [
        *_other_answers(manifest, config, index),
        *_missing_layers("maps", manifest.answers.maps.layers, maps, "attention"),
        *_missing_layers("features", manifest.answers.tokens.layers, tokens, "features"),
    ]
    # How far a cache of something else goes does not matter any more.
    mistakes = mistakes or _missing_passes(folder, manifest, needed_extent(config, index), index)
    if mistakes:
        raise ConfigError("\n".join(f"teacher.cache {str(folder)!r}: {mistake}" for mistake in mistakes))
    sidecar = Sidecar(
        folder,
        index,
        manifest.answers.record,
        augment=config.data.augment,
        again=manifest.command,
        passes=manifest.wanted.passes,
        # Of an option that is given twice the later counts.
        further=f"{manifest.command} --epochs {further_epochs(config, index, manifest)}",
    )
    logits = config.teacher.logits
    return CachedTeacher(
        manifest.answers,
        sidecar,
        attention_layers=maps,
        token_layers=tokens,
        temperature=1.0 if logits is None else logits.temperature,
    )


def _other_answers(manifest: CacheManifest, config: FinetuneConfig, index: ShardIndex) -> list[str]:
    found = []
    teachers = teacher_differences(manifest.teachers, teachers_of(config))
    if teachers:
        found.append(f"{teachers}; name the teacher it was taught by, or teach anew into another folder")
    if manifest.data != index.digest:
        found.append(
            f"it is about other images: its data has the digest {manifest.data}, that of data.train is {index.digest}; "
            "train on the data it was taught with, or teach anew into another folder"
        )
    crops = list(setting_differences(manifest.crops, crops_of(config)))
    if crops:
        found.append(
            f"it is about other crops: {'; '.join(crops)}; set what the cache was taught with, or teach anew into "
            "another folder"
        )
    return found


def _missing_layers(what: str, there: Sequence[int], wanted: Sequence[int], section: str) -> list[str]:
    missing = [layer for layer in wanted if layer not in there]
    if not missing:
        return []
    has = ", ".join(map(str, there)) or "none"
    return [
        f"it has no {what} of the teacher's layers {', '.join(map(str, missing))} (it has: {has}); set "
        f"teacher.{section}.teacher_layers to what it has, or teach anew into another folder"
    ]


def _missing_passes(folder: Path, manifest: CacheManifest, needed: Extent, index: ShardIndex) -> list[str]:
    if manifest.taught is not None and manifest.taught.covers(needed):
        return []
    if manifest.wanted.covers(needed):
        parts = parts_of(index, passes=needed.passes, copies=needed.copies)
        missing = sum(not part.path(folder).is_file() for part in parts)
        return [
            f"it is not finished: {missing} of {len(parts)} files are missing; go on with: {manifest.command}"
        ]
    there = manifest.wanted
    if needed.copies > there.copies:
        return [
            f"it has {there.copies} copies of each image, and data.repeats is {needed.copies}: lower it, or add "
            "copies by mirada teach with this recipe"
        ]
    return [
        f"it holds {_counted(there)} over the data, and this run goes through {_counted(needed)}: let the variations "
        f"come again (data.augment.passes={min(there.passes)}), train for less, or add passes by mirada teach with "
        "this recipe and the same --out"
    ]


def _counted(extent: Extent) -> str:
    counts = " and ".join(f"{count:,}" for count in extent.passes)
    return f"{counts} pass{'' if extent.passes == (1,) else 'es'}"
