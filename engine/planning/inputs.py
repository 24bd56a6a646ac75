"""What a plan is made from: the numbers of a real model, dry-run without memory, and of a real or an assumed corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from configs.data import DataConfig
from configs.training import RunConfig
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.joined import open_training
from data_pipeline.order.plan import rank_slots
from data_pipeline.order.reading import measure_reading
from data_pipeline.order.run_order import RunOrder
from data_pipeline.shard import Shard
from engine.planning.memory import Numbers
from engine.planning.workload import Activations, Corpus, Request, Workload, changed
from engine.sharding.zero_config import BatchShape
from engine.world import World
from models.activation_memory import checkpointing, peak_activations
from models.complexity import count_own_flops, train_flops_per_image
from models.dry_step import Forward, call_model

_SHARD_SAMPLES = 10_000
"""Of an assumed corpus: `mirada data build` makes shards of about so many photographs."""
_SHARD_BYTES = 1_000_000_000
_MOST_RANKS = 64
"""The shards of more ranks than this are not counted one by one: they are alike."""


def open_or_assume_index(
    data: DataConfig, *, samples: int | None, shards: int | None, classes: int
) -> ShardIndex:
    """The index of the run's data, or with `samples` one of equal shards that need not exist."""
    if samples is None:
        try:
            return open_training(data)
        except DataError as missing:
            raise DataError(
                f"{missing}; or plan for a number of samples without it: --samples M"
            ) from missing
    count = shards or -(-samples // _SHARD_SAMPLES)
    lengths = [samples * (number + 1) // count - samples * number // count for number in range(count)]
    return ShardIndex(
        folder=Path(data.train),
        name="assumed",
        split="train",
        classes=tuple(map(str, range(classes))),
        shards=tuple(
            Shard(name=f"{number:06d}.tar", url="", num_samples=length, num_bytes=_SHARD_BYTES, digest="")
            for number, length in enumerate(lengths)
        ),
    )


def measure_corpus(index: ShardIndex, config: RunConfig, request: Request, *, is_assumed: bool) -> Corpus:
    """How the run's nodes and ranks will share the data; DataError where a batch cannot be shared or filled."""
    data, batch = config.data, config.train.global_batch
    if is_assumed:  # there are no labels to select by, and no other corpora
        data = data.model_copy(update={"mixture": (), "unlabelled": "keep"})
    slots = [rank_slots(batch, rank, request.num_ranks) for rank in range(request.num_ranks)]
    order = RunOrder(index, data, global_batch=batch, seed=config.train.seed)
    reading = measure_reading(index, order, global_batch=batch, num_nodes=request.nodes)
    counted = slots[:_MOST_RANKS]
    return Corpus(
        num_samples=order.num_samples,
        num_shards=reading.num_shards,
        batches_per_epoch=order.batches_per_epoch,
        num_streams=order.num_streams,
        most_shards_per_node=reading.most_shards,
        shards_per_rank=sum(len(order.shards(0, own)) for own in counted) / len(counted),
        amplification=reading.amplification,
        is_assumed=is_assumed,
    )


def micro_batch_of(config: RunConfig, request: Request) -> int:
    """Images a rank takes through the model at once; ConfigError where the ranks cannot share the batch."""
    world = World(rank=0, size=request.num_ranks, local_rank=0, device=torch.device("cuda"))
    return BatchShape.of(config, world).micro_batch


def measure_workload(
    model: nn.Module,
    config: RunConfig,
    *,
    micro_batch: int,
    forward: Forward = call_model,
    frozen: Sequence[nn.Module] = (),
) -> Workload:
    """The numbers of a model, and of frozen ones that are called on the same images."""
    shape = (config.data.channels, config.data.image_size, config.data.image_size)
    numbers = Numbers.of(model, config.optim)
    with checkpointing(model, enabled=False):
        activations = _activations(model, config, shape, micro_batch, forward)
        forward_flops = train_flops_per_image(model, shape, forward=forward, backward=False)
        train_flops = train_flops_per_image(model, shape, forward=forward)
    with checkpointing(model, enabled=True) as can:
        possible = can and _may_recompute(config)
        checkpointed = _activations(model, config, shape, micro_batch, forward) if possible else None
    train_flops += sum(map(count_own_flops, frozen))
    return Workload(
        numbers=numbers,
        activations=activations,
        checkpointed=checkpointed,
        forward_flops=forward_flops,
        train_flops=train_flops,
        frozen_bytes=sum(weight.nbytes for network in frozen for weight in network.parameters()),
    )


def _may_recompute(config: RunConfig) -> bool:
    """Whether the recipe allows activation checkpointing; one that watches layers does not."""
    try:
        changed(config, train={"activation_checkpointing": True})
    except ValueError:
        return False
    return True


def _activations(
    model: nn.Module, config: RunConfig, shape: tuple[int, int, int], micro_batch: int, forward: Forward
) -> Activations:
    """A line through the peaks at the micro-batch and at half of it."""
    many = max(micro_batch, 4)
    few = many // 2
    precision = config.train.precision
    peaks = [
        peak_activations(model, (count, *shape), precision=precision, forward=forward)
        for count in (few, many)
    ]
    per_image = (peaks[1] - peaks[0]) / (many - few)
    return Activations(fixed=peaks[1] - per_image * many, per_image=per_image)
