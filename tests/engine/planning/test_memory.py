"""The arithmetic of memory: by hand on round numbers, and against what DeepSpeed holds on real ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.state_memory import measure
from configs.data import DataConfig
from configs.training import ModelConfig, OptimConfig, RunConfig, TrainConfig, ZeroConfig
from engine.planning.memory import Numbers, checkpoint_bytes, state_memory
from engine.planning.workload import changed
from engine.sharding.zero_config import deepspeed_config
from engine.world import World

MILLION = 1_000_000
NUMBERS = Numbers(
    trainable=100 * MILLION,
    fixed=MILLION,
    averaged=100 * MILLION,
    small=2 * MILLION,
    optimizer=200 * MILLION,
)


def config(**sections: dict[str, Any]) -> RunConfig:
    whole = RunConfig(
        data=DataConfig(train="none"),
        model=ModelConfig(name="any"),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig.model_validate({"duration": "1 steps", "global_batch": 64, "ema": 0.9}),
        zero=ZeroConfig(stage=0),
    )
    return changed(whole, **sections)


def planned(run: RunConfig, num_ranks: int) -> dict[str, float]:
    """Millions of fp32 numbers."""
    world = World(rank=0, size=num_ranks, local_rank=0, device=torch.device("cuda"))
    settings = deepspeed_config(run, world, num_parameters=NUMBERS.trainable)
    memory = state_memory(NUMBERS, run, settings, num_ranks=num_ranks)
    return {name: getattr(memory, name) / 4 / MILLION for name in memory.__slots__}


@pytest.mark.parametrize(
    ("stage", "parameters", "masters", "optimizer", "gradients"),
    [(0, 101, 0, 200, 100), (1, 101, 25, 50, 100), (2, 101, 25, 50, 25), (3, 1 + 25 + 2, 0, 50, 25)],
)
def test_each_stage_shards_one_thing_more(
    stage: int, parameters: float, masters: float, optimizer: float, gradients: float
) -> None:
    memory = planned(config(zero={"stage": stage}), num_ranks=4)
    assert memory["parameters"] == parameters
    assert memory["master_weights"] == masters
    assert memory["optimizer_state"] == optimizer
    assert memory["gradients"] == gradients
    assert memory["ema"] == 25
    assert memory["host"] == 0


def test_offloaded_state_is_in_the_hosts_memory() -> None:
    kept = planned(config(zero={"stage": 2}), num_ranks=4)
    moved = planned(config(zero={"stage": 2, "offload": "optimizer"}), num_ranks=4)
    assert moved["optimizer_state"] == moved["master_weights"] == 0
    assert moved["host"] >= kept["optimizer_state"] + kept["master_weights"]


def test_autocast_doubles_the_buckets_and_overlap_doubles_them_again() -> None:
    assert planned(config(zero={"stage": 2}), num_ranks=4)["buckets"] == 2 * 50
    assert planned(config(zero={"stage": 2}, train={"precision": "bf16"}), num_ranks=4)["buckets"] == 4 * 50
    one = {"stage": 2, "extra": {"zero_optimization": {"overlap_comm": False}}}
    assert planned(config(zero=one), num_ranks=4)["buckets"] == 50


def test_stage_3_holds_whole_all_parameters_of_a_model_below_half_a_billion() -> None:
    assert planned(config(zero={"stage": 3}), num_ranks=4)["gathered"] == 98
    near = {"stage": 3, "extra": {"zero_optimization": {"stage3_max_reuse_distance": 20 * MILLION}}}
    assert planned(config(zero=near), num_ranks=4)["gathered"] == 10


def test_a_model_is_counted_by_what_becomes_of_its_numbers() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))
    model[2].requires_grad_(False)
    numbers = Numbers.of(model, OptimConfig(lr=1e-3))
    assert numbers.trainable == 220 + 40
    assert numbers.fixed == 105 + 20 + 20 + 1
    assert numbers.optimizer == 2 * numbers.trainable
    assert Numbers.of(model, OptimConfig(lr=1e-3, name="lion")).optimizer == numbers.trainable


def test_a_checkpoint_holds_weights_masters_optimizer_state_and_average() -> None:
    assert checkpoint_bytes(NUMBERS, config()) == 4 * (101 + 200 + 100) * MILLION
    assert checkpoint_bytes(NUMBERS, config(zero={"stage": 1})) == 4 * (101 + 100 + 200 + 100) * MILLION


@pytest.mark.slow
def test_two_ranks_hold_what_is_planned_at_every_stage() -> None:
    """What is added up are DeepSpeed's own tensors, of the first two steps of a ViT."""
    rows = measure("vit_tiny_patch16_224", num_ranks=2)
    assert [row["stage"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row["ratio"] == pytest.approx(1, abs=0.1), row
        assert row["measured"]["gradients"] <= 1.1 * row["planned"]["gradients"], row
