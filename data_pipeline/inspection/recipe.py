"""The parts of a recipe, or of a run's config, that decide what the data looks like, whatever program it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from configs.base import Section
from configs.data import DataConfig
from configs.load import load_config
from configs.text import TEXT_OBJECTIVES
from configs.training import TrainConfig
from data_pipeline.index import ShardIndex
from data_pipeline.inspection.inspect import spaced
from data_pipeline.inspection.sample_names import SampleNames
from data_pipeline.inspection.sheet import Sheet, check_name, exact_side, exact_tile, whole_image
from data_pipeline.mix import draw_mix, mix_pixels
from data_pipeline.reader import SampleReader

Ints = NDArray[np.int64]

_VARIANTS = 9
_MAX_ROWS = 40
_LEAST_ROWS = 10


class ObjectiveName(Section, extra="ignore"):
    """What a pretraining recipe learns from, by name."""

    name: str = ""


class Recipe(Section, extra="ignore"):
    """The sections of pretraining and fine-tuning recipes that concern data; others are somebody else's."""

    data: DataConfig
    train: TrainConfig | None = None
    objective: ObjectiveName = ObjectiveName()

    @property
    def needs_captions(self) -> bool:
        """Whether training leaves out what has no caption."""
        return self.objective.name in TEXT_OBJECTIVES

    @property
    def seed(self) -> int:
        """Of the order and the augmentations."""
        return self.train.seed if self.train is not None else 0


def load_recipe(path: str | Path) -> Recipe:
    """A recipe with its bases; mistakes in its data section are ConfigErrors."""
    return load_config(Recipe, path).config


def write_augmented_sheet(index: ShardIndex, recipe: Recipe, file: Path) -> None:
    """A PNG of rows: an image as it is, and nine variations a training run makes of it, from its first pass on.

    With mixup or cutmix two rows are neighbours of a batch: which images will be, the order of a run decides. Sizes
    before the last (``data.progressive``) are not shown.
    """
    check_name(file)
    data, sample_ids = recipe.data, _one_per_class(index)
    names, side = SampleNames(index), exact_side(data.image_size)
    sheet = Sheet(columns=1 + _VARIANTS, tile=side, gap=4)
    variants = _draw_variants(index, recipe, sample_ids)
    described = zip(names.of(sample_ids), names.images(sample_ids), strict=True)
    for place, (name, encoded) in enumerate(described):
        varied = [exact_tile(image, side) for image in variants[:, place]]
        class_name = f"{name.class_name}  " if name.class_name is not None else ""
        mixed = data.augment.mixes and place ^ 1 < len(sample_ids)
        sheet.add_row(
            f"{class_name}{name.key}: as it is, then {_describe_variants(data)}"
            + (f", mixed with the row {'above' if place % 2 else 'below'}" if mixed else ""),
            [whole_image(encoded, side), *varied],
        )
    names.close()
    sheet.write(file)


def _draw_variants(index: ShardIndex, recipe: Recipe, sample_ids: Ints) -> NDArray[np.uint8]:
    """[variants, samples, S, S, C]: pass after pass, copy after copy; rows 2i and 2i + 1 mixed with one another."""
    data, reader = recipe.data, SampleReader(index, recipe.data)
    size, num_mixed = data.image_size, len(sample_ids) // 2 * 2
    variants = np.zeros((_VARIANTS, len(sample_ids), size, size, data.channels), np.uint8)
    for number, images in enumerate(variants):
        epoch, copy = divmod(number, data.repeats)
        slots = np.arange(len(sample_ids))
        reader.read_varied(
            slots, sample_ids, images, augment=data.augment, seed=recipe.seed, epoch=epoch, copy=copy
        )
        if data.augment.mixes:
            mix = draw_mix(
                data.augment,
                size=size,
                seed=recipe.seed,
                epochs=np.full(num_mixed, epoch),
                sample_ids=sample_ids[:num_mixed],
                copies=np.full(num_mixed, copy),
            )
            pairs = torch.from_numpy(images[:num_mixed]).permute(0, 3, 1, 2)
            images[:num_mixed] = mix_pixels(pairs, mix).permute(0, 2, 3, 1).numpy()
    return variants


def _describe_variants(data: DataConfig) -> str:
    if data.repeats == 1:
        return f"epochs 0 to {_VARIANTS - 1}"
    return f"pass 0 to {(_VARIANTS - 1) // data.repeats}, {data.repeats} copies each"


def _one_per_class(index: ShardIndex) -> Ints:
    """A sample of each class, more where there are few classes, evenly spaced ones where there are none."""
    labels = index.labels()
    if not index.classes:
        return spaced(np.arange(index.num_samples), _LEAST_ROWS)
    each = -(-_LEAST_ROWS // len(index.classes))
    chosen = [
        np.unique(spaced(np.flatnonzero(labels == label), each))
        for label in range(min(_MAX_ROWS, len(index.classes)))
    ]
    return np.concatenate(chosen)
