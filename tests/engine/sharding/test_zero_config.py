"""Our config as DeepSpeed's, and one step at each stage on one rank against plain PyTorch."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from configs.base import ConfigError
from configs.training import RunConfig
from engine.sharding.zero_config import BatchShape, deepspeed_config
from engine.world import World
from tests.support.tiny_run import tiny_config


def ranks(world_size: int, device: str = "cpu") -> World:
    return World(rank=0, size=world_size, local_rank=0, device=torch.device(device))


def config_with(stage: int = 2, train: dict[str, Any] | None = None, **sections: dict[str, Any]) -> RunConfig:
    """The tiny run's config, with fields of sections replaced."""
    plain = tiny_config(stage=stage, world_size=1, **(train or {})).model_dump()
    for name, fields in sections.items():
        plain[name] = {**plain[name], **fields}
    return RunConfig.model_validate(plain)


def settings(
    world_size: int = 1, extra: dict[str, Any] | None = None, stage: int = 2, **train: Any
) -> dict[str, Any]:
    config = config_with(stage, train, zero={"extra": extra or {}})
    return deepspeed_config(config, ranks(world_size), num_parameters=1000)


@pytest.mark.parametrize(
    ("global_batch", "limit", "world_size", "micro", "accumulation"),
    [(16, None, 1, 16, 1), (16, 16, 2, 8, 1), (16, 4, 2, 4, 2), (96, 36, 1, 32, 3), (96, 1, 2, 1, 48)],
)
def test_micro_batch_and_accumulation_follow_from_the_global_batch_and_the_world(
    global_batch: int, limit: int | None, world_size: int, micro: int, accumulation: int
) -> None:
    made = settings(world_size, global_batch=global_batch, micro_batch=limit)
    assert made["train_batch_size"] == global_batch
    assert made["train_micro_batch_size_per_gpu"] == micro
    assert made["gradient_accumulation_steps"] == accumulation


def test_a_global_batch_that_ranks_cannot_share_is_an_error_with_the_nearest_that_can() -> None:
    with pytest.raises(ConfigError, match=r"train.global_batch is 16, .* multiple of 3 \(15 or 18\)"):
        settings(3, global_batch=16)


def test_a_micro_batch_that_would_leave_a_device_half_empty_is_an_error_with_what_is_possible() -> None:
    with pytest.raises(ConfigError, match=r"train.micro_batch is 8, .* micro-batches of 1, 17 only"):
        settings(1, global_batch=17, micro_batch=8)


def test_images_that_are_mixed_in_pairs_make_shares_and_micro_batches_even() -> None:
    mixed = {"augment": {"mixup": 0.8}}
    made = BatchShape.of(config_with(train={"global_batch": 12, "micro_batch": 3}, data=mixed), ranks(2))
    assert (made.micro_batch, made.accumulation) == (2, 3)
    with pytest.raises(ConfigError, match=r"global_batch is 6, .*mixup and cutmix need pairs: .* \(4 or 8\)"):
        BatchShape.of(config_with(train={"global_batch": 6}, data=mixed), ranks(2))
    with pytest.raises(ConfigError, match=r"micro_batch is 1, .*need pairs.* micro-batches of 2, 4, 8 only"):
        BatchShape.of(config_with(train={"global_batch": 16, "micro_batch": 1}, data=mixed), ranks(2))


@pytest.mark.parametrize(
    ("world_size", "limit", "said"),
    [
        (1, None, "global batch 96 = 1 rank x 96 images"),
        (2, 12, "global batch 96 = 2 ranks x 12 images x 4 micro-batches"),
    ],
)
def test_what_a_rank_takes_at_once_is_said_in_a_line(world_size: int, limit: int | None, said: str) -> None:
    config = config_with(train={"global_batch": 96, "micro_batch": limit})
    assert str(BatchShape.of(config, ranks(world_size))) == said


@pytest.mark.parametrize(("offload", "keys"), [("optimizer", 1), ("parameters", 2)])
def test_offloading_names_the_host_for_what_it_moves(offload: str, keys: int) -> None:
    made = deepspeed_config(
        config_with(stage=3, zero={"offload": offload}), ranks(2, "cuda"), num_parameters=1000
    )
    moved = {name for name in made["zero_optimization"] if name.startswith("offload_")}
    assert moved == set(["offload_optimizer", "offload_param"][:keys])
    assert all(made["zero_optimization"][n] == {"device": "cpu", "pin_memory": True} for n in moved)
    assert made["zero_force_ds_cpu_optimizer"] is False


def test_further_deepspeed_keys_pass_through() -> None:
    extra = {"zero_optimization": {"reduce_bucket_size": 123, "round_robin_gradients": True}, "seed": 5}
    made = settings(extra=extra)
    assert made["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 123,
        "round_robin_gradients": True,
        "overlap_comm": False,
    }
    assert made["seed"] == 5


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"train_batch_size": 8}, "train_batch_size"),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage"),
        ({"zero_optimization": 1}, "zero_optimization"),
        ({"optimizer": {"type": "Adam"}}, "optimizer (use optim)"),
        ({"bf16": {"enabled": True}}, "bf16 (use train.precision)"),
        ({"fp16": {"enabled": True}}, "fp16 (use train.precision)"),
    ],
)
def test_a_key_that_mirada_sets_is_an_error_that_lists_them(extra: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)) as failure:
        settings(extra=extra)
    assert "gradient_accumulation_steps" in str(failure.value)
