"""The cluster recipes fit together: model, schedule and data plan at ImageNet's size, without reading an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.load import load_config
from data_pipeline.index import ShardIndex
from data_pipeline.order.plan import Plan, rank_slots
from data_pipeline.order.run_order import RunOrder
from data_pipeline.shard import Shard
from engine.sharding.zero_config import BatchShape, deepspeed_config
from engine.timetable import Timetable
from engine.world import World
from models.build import build_model
from models.complexity import count_flops, count_parameters, train_flops_per_image
from models.image_text import ImageText
from pretrain.config import PretrainConfig
from pretrain.contrastive import Contrastive
from pretrain.dry_forward import dry_forward
from pretrain.masked import MaskedAutoencoding
from pretrain.run import build_task

pytestmark = pytest.mark.slow

NUM_IMAGES = 1_281_167
SHARD_SIZE = 10_000
PUBLISHED = {  # parameters and multiply-adds of the papers: Dosovitskiy et al. 2021 / timm, Liu et al. 2021 table 1
    "imagenet_vit_b16": (86.6e6, 17.6e9),
    "imagenet_swin_b": (87.8e6, 15.4e9),
}


@pytest.fixture(scope="module")
def index() -> ShardIndex:
    sizes = [SHARD_SIZE] * (NUM_IMAGES // SHARD_SIZE) + [NUM_IMAGES % SHARD_SIZE]
    shards = tuple(
        Shard(name=f"train-{i:06d}.tar", url="", num_samples=size, num_bytes=size * 110_000, digest="")
        for i, size in enumerate(sizes)
    )
    return ShardIndex(
        folder=Path("synthetic"),
        name="imagenet",
        split="train",
        classes=tuple(map(str, range(1000))),
        shards=shards,
    )


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_model_has_the_published_size_and_cost(recipe: str) -> None:
    config = load_config(PretrainConfig, f"configs/pretrain/{recipe}.yaml").config
    model = build_model(config.model, num_classes=1000, in_chans=3, image_size=config.data.image_size)
    parameters, multiply_adds = PUBLISHED[recipe]
    assert count_parameters(model) == pytest.approx(parameters, rel=0.01)
    assert count_flops(model, (3, 224, 224)) == pytest.approx(2 * multiply_adds, rel=0.03)


@pytest.mark.parametrize("recipe", PUBLISHED)
@pytest.mark.parametrize("num_nodes", [1, 2, 8])
def test_schedule_and_batches_fit_one_to_eight_nodes(recipe: str, num_nodes: int, index: ShardIndex) -> None:
    config = load_config(PretrainConfig, f"configs/pretrain/{recipe}.yaml").config
    timetable = Timetable.of(config, steps_per_epoch=index.num_samples // config.train.global_batch)
    assert timetable.total_steps == 300 * 1251
    assert timetable.learning_rate(timetable.warmup_steps) == pytest.approx(config.optim.lr)
    assert timetable.learning_rate(timetable.total_steps) == pytest.approx(config.schedule.min_lr)
    world = World(rank=0, size=8 * num_nodes, local_rank=0, device=torch.device("cpu"))
    settings = deepspeed_config(config, world, num_parameters=1)
    assert settings["train_batch_size"] == 1024
    assert (
        settings["train_micro_batch_size_per_gpu"] * settings["gradient_accumulation_steps"] * world.size
        == 1024
    )


def test_the_masked_autoencoder_has_the_sizes_of_the_paper() -> None:
    config = load_config(PretrainConfig, "configs/pretrain/imagenet_mae_vit_b16.yaml").config
    model, objective = build_task(config, num_classes=1000)
    assert isinstance(objective, MaskedAutoencoding)
    assert (objective.num_patches, objective.num_visible) == (196, 49)
    assert count_parameters(model) == pytest.approx(
        111.9e6, rel=0.002
    )  # of the authors' released ViT-B and decoder
    timetable = Timetable.of(config, steps_per_epoch=NUM_IMAGES // config.train.global_batch)
    assert (timetable.total_steps, timetable.warmup_steps) == (1600 * 312, 40 * 312)
    assert timetable.learning_rate(timetable.warmup_steps) == pytest.approx(1.5e-4 * 4096 / 256)
    flops = train_flops_per_image(model, (3, 224, 224), forward=dry_forward(objective), backward=False)
    whole = count_flops(model, (3, 224, 224))
    assert 0.5 < flops / whole < 0.6  # a quarter of the encoder, and a decoder on all patches


def test_the_towers_for_captions_have_the_sizes_of_the_paper() -> None:
    config = load_config(PretrainConfig, "configs/pretrain/cc3m_siglip_vit_b16.yaml").config
    with torch.device("meta"):
        model, objective = build_task(config, num_classes=0)
    assert isinstance(model, ImageText) and isinstance(objective, Contrastive)
    # timm's vit_base_patch16_siglip_224, and open_clip's ViT-B-16-SigLIP with a vocabulary of 49,408 for 32,000 words
    assert count_parameters(model.image) == pytest.approx(92.9e6, rel=0.001)
    assert count_parameters(model.text) == pytest.approx(110.3e6 + 768 * (49_408 - 32_000), rel=0.001)
    world = World(rank=0, size=16, local_rank=0, device=torch.device("cpu"))
    assert BatchShape.of(config, world).micro_batch == 256
    flops = train_flops_per_image(model, (3, 224, 224), forward=dry_forward(objective), backward=False)
    assert flops == pytest.approx(46e9, rel=0.05)  # 17.5 G multiply-adds for an image, 5.5 G for 64 tokens


def test_an_epoch_of_the_vit_is_a_third_of_the_images_three_times(index: ShardIndex) -> None:
    config = load_config(PretrainConfig, "configs/pretrain/imagenet_vit_b16.yaml").config
    order = RunOrder(index, config.data, global_batch=1024, seed=0)
    assert order.batches_per_epoch == NUM_IMAGES // 1024
    epoch = [order.share(step).sample_ids for step in range(order.batches_per_epoch)]
    assert len(np.unique(np.concatenate(epoch))) == pytest.approx(NUM_IMAGES / 3, rel=0.001)
    for step in (0, 700, 1250):  # copies stand in the same batch, but for those at its edges
        assert len(np.unique(epoch[step])) == pytest.approx(1024 / 3, rel=0.1)


def test_ranks_share_each_batch_and_an_epoch_takes_no_image_twice(index: ShardIndex) -> None:
    config = load_config(PretrainConfig, "configs/pretrain/imagenet_swin_b.yaml").config
    plan = Plan(index.lengths, global_batch=1024, seed=0, window=config.data.shuffle_window)
    parts = [plan.batch(3, 700, rank_slots(1024, rank, 64)) for rank in range(64)]
    np.testing.assert_array_equal(np.concatenate(parts), plan.batch(3, 700))
    epoch = np.concatenate([plan.batch(3, step) for step in range(plan.batches_per_epoch)])
    assert len(np.unique(epoch)) == len(epoch) == NUM_IMAGES // 1024 * 1024
