"""Everything that varies a run's images at once: mixing, copies and sizes that change, with real loaders.

Pixels, coefficients and soft labels are compared bit for bit with those of one process that nothing happened to.
"""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

from configs.base import Duration
from configs.data import AugmentConfig, CorpusConfig, DataConfig, RandAugmentConfig
from data_pipeline.batch import normalize
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.joined import open_training
from data_pipeline.loader import EvalLoader, ShardLoader
from data_pipeline.mix import mix_images
from models.losses import soft_labels
from tests.support.shards import make_shards

GLOBAL_BATCH, NUM_STEPS = 16, 20
AUGMENT = AugmentConfig(
    randaugment=RandAugmentConfig(), erase=0.25, mixup=0.8, cutmix=1.0, mix_probability=0.9
)
MODEL_SIZES = [16] * 4 + [20] * 2 + [24] * 14

Step = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two corpora, the second without labels, with images that cannot be used."""
    folder = tmp_path_factory.mktemp("corpora")
    make_shards(folder / "first", [21, 14, 18], size=(30, 26), channels=3, bad={5: b"x", 33: b"\x89PNG"})
    make_shards(folder / "second", [17], size=(20, 28), channels=3, num_classes=None)
    mixture = [{"train": str(folder / "second"), "weight": "20 %"}]
    phases = [{"until": "4 steps", "image_size": 16}, {"until": "30 %", "image_size": 20}]
    return DataConfig(
        train=str(folder / "first"),
        mixture=tuple(CorpusConfig.model_validate(corpus) for corpus in mixture),
        image_size=24,
        workers=0,
        prefetch=2,
        repeats=3,
        label_fraction=0.7,
        max_bad_fraction=0.1,
        augment=AUGMENT,
    ).model_copy(
        update={"progressive": DataConfig.model_validate({"train": "", "progressive": phases}).progressive}
    )


@pytest.fixture(scope="module")
def index(data: DataConfig) -> ShardIndex:
    return open_training(data)


def make_loader(index: ShardIndex, data: DataConfig, *, rank: int = 0, world_size: int = 1) -> ShardLoader:
    return ShardLoader(
        index,
        data,
        global_batch=GLOBAL_BATCH,
        seed=5,
        duration=Duration(NUM_STEPS, "steps"),
        rank=rank,
        world_size=world_size,
    )


def train(loader: ShardLoader, num_steps: int, *, micro_batch: int = GLOBAL_BATCH) -> list[Step]:
    """What a model is given at each step: mixed images, soft labels, and what they come from."""
    steps = []
    for batch in islice(loader, num_steps):
        parts: list[Step] = []
        for part in batch.split(micro_batch):
            assert part.mix is not None
            pixels = mix_images(normalize(part.images, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), part.mix)
            soft = soft_labels(part.targets, part.mix.shares, num_classes=10, label_smoothing=0.1)
            numbers = (part.sample_ids, part.epochs, part.copies, part.mix.shares, part.mix.boxes)
            parts.append((pixels, soft, *numbers))
        steps.append(tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
        loader.advance()
    return steps


@pytest.fixture(scope="module")
def expected(index: ShardIndex, data: DataConfig) -> list[Step]:
    """One process without workers, all steps in a row."""
    return train(make_loader(index, data), NUM_STEPS)


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_coefficients_and_soft_labels_are_the_same_on_1_2_4_ranks_and_after_interruptions(
    index: ShardIndex, data: DataConfig, expected: list[Step], workers: int
) -> None:
    data, position, found = data.model_copy(update={"workers": workers}), None, list[Step]()
    # Stopped within the first size, within the second, and within the last pass, each with another micro-batch.
    for world_size, num_steps, micro_batch in ((2, 3, 4), (4, 2, 2), (1, 9, 8), (2, 6, 2)):
        ranks = [make_loader(index, data, rank=rank, world_size=world_size) for rank in range(world_size)]
        for rank in ranks:
            if position is not None:
                rank.load_state_dict(position)
        shares = [train(rank, num_steps, micro_batch=micro_batch) for rank in ranks]
        position = ranks[0].state_dict()
        found += [
            tuple(torch.cat(parts) for parts in zip(*of_step, strict=True))
            for of_step in zip(*shares, strict=True)
        ]
    assert [len(step[0]) for step in found] == [GLOBAL_BATCH] * NUM_STEPS
    for step, whole in zip(found, expected, strict=True):
        assert all(torch.equal(part, other) for part, other in zip(step, whole, strict=True))


def test_the_run_has_the_sizes_copies_and_mixtures_that_were_asked_for(expected: list[Step]) -> None:
    assert [step[0].shape[-1] for step in expected] == MODEL_SIZES
    _, soft, _ids, epochs, copies, shares, boxes = (
        torch.cat([step[number] if number else step[1] for step in expected]) for number in range(7)
    )
    assert set(copies.tolist()) == {0, 1, 2}
    assert epochs.max() >= 1
    assert 0 < soft.sum() < len(soft)  # some labels are missing
    assert 0.05 < (shares == 1).float().mean() < 0.4
    assert 0.2 < (boxes[:, 2:].prod(dim=1) > 0).float().mean() < 0.7


def test_copies_of_a_sample_are_different_pictures_of_it(index: ShardIndex, data: DataConfig) -> None:
    batches = list(islice(make_loader(index, data), 6))
    pictures: dict[tuple[int, int], list[bytes]] = {}
    for batch in batches:
        names = zip(batch.sample_ids.tolist(), batch.epochs.tolist(), batch.images, strict=True)
        for sample_id, epoch, image in names:
            pictures.setdefault((sample_id, epoch), []).append(image.contiguous().numpy().tobytes())
    assert sum(len(copies) for copies in pictures.values() if len(copies) == 3) > 48
    assert all(len(set(copies)) == len(copies) for copies in pictures.values())


def test_the_first_copies_are_the_pictures_of_a_run_without_copies(
    index: ShardIndex, data: DataConfig
) -> None:
    def pictures(loader: ShardLoader) -> dict[tuple[int, int], bytes]:
        return {
            (sample_id, epoch): image.contiguous().numpy().tobytes()
            for batch in islice(loader, 8)
            for sample_id, epoch, copy, image in zip(
                batch.sample_ids.tolist(),
                batch.epochs.tolist(),
                batch.copies.tolist(),
                batch.images,
                strict=True,
            )
            if copy == 0
        }

    one_size = data.model_copy(update={"progressive": ()})
    repeated = pictures(make_loader(index, one_size))
    once = pictures(make_loader(index, one_size.model_copy(update={"repeats": 1})))
    shared = repeated.keys() & once.keys()
    assert len(shared) > 20
    assert all(repeated[key] == once[key] for key in shared)


def test_evaluation_has_the_last_size_and_mixes_nothing(index: ShardIndex, data: DataConfig) -> None:
    (batch,) = islice(EvalLoader(index, data, batch_size=5), 1)
    assert batch.images.shape == (5, 3, 24, 24)
    assert batch.mix is None
    assert batch.label_shares is None
    assert batch.copies.tolist() == batch.epochs.tolist() == [0] * 5


def test_a_rank_s_share_that_is_no_number_of_pairs_is_an_error(index: ShardIndex, data: DataConfig) -> None:
    with pytest.raises(
        DataError, match=r"in pairs, and a rank's share of a batch is 1 images; make train\.global_batch"
    ):
        make_loader(index, data, world_size=16)


def test_a_micro_batch_that_would_part_a_pair_is_refused(index: ShardIndex, data: DataConfig) -> None:
    batch = next(iter(make_loader(index, data)))
    with pytest.raises(ValueError, match="micro-batch of 3 images would part neighbours"):
        batch.split(3)
