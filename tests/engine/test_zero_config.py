"""Our config as DeepSpeed's, and one step at each stage on one rank against plain PyTorch."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from configs.base import ConfigError
from engine.world import World
from engine.zero_config import deepspeed_config
from tests.support.tiny_run import tiny_config


def settings(
    world_size: int = 1, extra: dict[str, Any] | None = None, stage: int = 2, **train: Any
) -> dict[str, Any]:
    config = tiny_config(stage=stage, world_size=1, **train)
    config = config.model_copy(update={"zero": config.zero.model_copy(update={"extra": extra or {}})})
    world = World(rank=0, size=world_size, local_rank=0, device=torch.device("cpu"))
    return deepspeed_config(config, world, num_parameters=1000)


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
    ],
)
def test_a_key_that_mirada_sets_is_an_error_that_lists_them(extra: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)) as failure:
        settings(extra=extra)
    assert "gradient_accumulation_steps" in str(failure.value)
