"""The parts of a recipe, or of a run's config, that decide what the data looks like, whatever program it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.base import Section
from configs.data import DataConfig
from configs.load import load_config
from configs.training import TrainConfig
from data_pipeline.index import ShardIndex
from data_pipeline.inspection.inspect import spaced
from data_pipeline.inspection.sample_names import SampleNames
from data_pipeline.inspection.sheet import Sheet, check_name, exact_side, exact_tile, whole_image
from data_pipeline.reader import SampleReader

_VARIANTS = 9
_MAX_ROWS = 40
_LEAST_ROWS = 10


class Recipe(Section, extra="ignore"):
    """The sections of pretraining and fine-tuning recipes that concern data; others are somebody else's."""

    data: DataConfig
    train: TrainConfig | None = None

    @property
    def seed(self) -> int:
        """Of the order and the augmentations."""
        return self.train.seed if self.train is not None else 0


def load_recipe(path: str | Path) -> Recipe:
    """A recipe with its bases; mistakes in its data section are ConfigErrors."""
    return load_config(Recipe, path).config


def write_augmented_sheet(index: ShardIndex, recipe: Recipe, file: Path) -> None:
    """A PNG of rows: an image as it is, and what a training run makes of it in its first nine epochs."""
    check_name(file)
    size, channels = recipe.data.image_size, recipe.data.channels
    side, sample_ids = exact_side(size), _one_per_class(index)
    names, reader = SampleNames(index), SampleReader(index, recipe.data)
    sheet = Sheet(columns=1 + _VARIANTS, tile=side, gap=4)
    variants = np.zeros((_VARIANTS, len(sample_ids), size, size, channels), np.uint8)
    for epoch, images in enumerate(variants):
        reader.read_varied(
            np.arange(len(sample_ids)),
            sample_ids,
            images,
            augment=recipe.data.augment,
            seed=recipe.seed,
            epoch=epoch,
        )
    described = zip(names.of(sample_ids), names.images(sample_ids), strict=True)
    for place, (name, encoded) in enumerate(described):
        varied = [exact_tile(image, side) for image in variants[:, place]]
        class_name = f"{name.class_name}  " if name.class_name is not None else ""
        sheet.add_row(
            f"{class_name}{name.key}: as it is, then epochs 0 to {_VARIANTS - 1}",
            [whole_image(encoded, side), *varied],
        )
    names.close()
    sheet.write(file)


def _one_per_class(index: ShardIndex) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
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
