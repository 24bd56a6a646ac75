"""data_pipeline.part: what is held out is never trained on, is the same every time, and keeps its images and labels."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from configs.data import CorpusConfig, DataConfig
from data_pipeline.index import ShardIndex
from data_pipeline.loader import EvalLoader, ShardLoader
from data_pipeline.part import held_out, is_held_out
from tests.support.loading import LENGTHS, configure, take
from tests.support.shards import draw_image, make_shards


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"), LENGTHS)


def test_training_sees_all_images_but_those_held_out(index: ShardIndex) -> None:
    data = configure(held_out=0.25)
    kept_away = np.flatnonzero(is_held_out(data, np.arange(index.num_samples)))
    loader = ShardLoader(index, data, global_batch=8, seed=0)
    assert loader.num_samples == index.num_samples - len(kept_away)
    seen = {
        sample for batch in take(loader, 3 * loader.batches_per_epoch) for sample in batch.sample_ids.tolist()
    }
    assert seen == set(range(index.num_samples)) - set(kept_away.tolist())


def test_the_held_out_part_has_the_images_and_labels_of_the_others(index: ShardIndex) -> None:
    data = configure(held_out=0.25)
    part, ids = held_out(index, data), np.flatnonzero(is_held_out(data, np.arange(index.num_samples)))
    assert (part.num_samples, part.classes) == (len(ids), index.classes) and part.digest != index.digest
    batches = list(EvalLoader(part, data, batch_size=10))
    images = [
        image[0].numpy()
        for batch in batches
        for image, w in zip(batch.images, batch.weights, strict=True)
        if w
    ]
    for image, sample_id in zip(images, ids.tolist(), strict=True):
        np.testing.assert_array_equal(image, draw_image(sample_id))
    assert part.labels().tolist() == index.labels()[ids].tolist()


def test_how_much_is_held_out_and_that_more_of_it_holds_all_that_less_of_it_does() -> None:
    ids = np.arange(100_000)
    tenth, half = (is_held_out(DataConfig(train="", held_out=part), ids) for part in (0.1, 0.5))
    assert abs(tenth.mean() - 0.1) < 0.005 and abs(half.mean() - 0.5) < 0.005
    assert not (tenth & ~half).any() and not is_held_out(DataConfig(train=""), ids).any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label_fraction": 0.1}, "'label_fraction' below 1 is set"),
        ({"mixture": (CorpusConfig(train="x", weight="1 pass"),)}, "'mixture' is set"),
    ],
)
def test_what_it_does_not_go_with_is_told(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        configure(held_out=0.1, **changes)
