"""Plans: batches, steps and hours by hand, and refusals whose remedies really fit."""

from __future__ import annotations

from typing import Any

import pytest

from configs.base import ConfigError
from configs.data import DataConfig
from configs.training import ModelConfig, OptimConfig, RunConfig, TrainConfig, ZeroConfig
from engine.planning.accelerator import GIB
from engine.planning.memory import Numbers
from engine.planning.plan import Plan, make_plan
from engine.planning.workload import RESERVE_GIB, Activations, Corpus, Request, Workload, changed

MILLION = 1_000_000
WORKLOAD = Workload(
    numbers=Numbers(
        trainable=100 * MILLION,
        fixed=0,
        averaged=100 * MILLION,
        small=MILLION,
        optimizer=200 * MILLION,
    ),
    activations=Activations(fixed=0.0, per_image=100e6),
    checkpointed=Activations(fixed=0.0, per_image=20e6),
    forward_flops=10**10,
    train_flops=3 * 10**10,
)
CORPUS = Corpus(
    num_samples=1_000_000,
    num_shards=100,
    batches_per_epoch=1000,
    num_streams=8,
    most_shards_per_node=50,
    shards_per_rank=13.0,
    amplification=1.02,
    is_assumed=True,
)


def config(**sections: dict[str, Any]) -> RunConfig:
    whole = RunConfig(
        data=DataConfig(train="none"),
        model=ModelConfig(name="any"),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig.model_validate(
            {"duration": "3 epochs", "global_batch": 1000, "checkpoint_every": "700 steps"}
        ),
        zero=ZeroConfig(stage=1),
    )
    return changed(whole, **sections)


def plan(run: RunConfig, **request: Any) -> Plan:
    return make_plan(run, WORKLOAD, CORPUS, Request(**{"nodes": 1, "gpus_per_node": 4, **request}))


def test_batch_steps_and_hours_are_those_done_by_hand() -> None:
    found = plan(config(train={"micro_batch": 30}), nodes=2, peak_flops=1e14, mfu=0.5)
    assert (found.micro_batch, found.accumulation, found.num_ranks) == (25, 5, 8)
    assert found.timetable.total_steps == 3000
    assert found.images == 3_000_000
    assert found.total_flops == 3e6 * 3e10
    assert found.gpu_hours == pytest.approx(9e16 / 5e13 / 3600)
    assert found.hours == pytest.approx(found.gpu_hours / 8)
    assert found.num_checkpoints == 5  # 700, 1400, 2100, 2800 and the last
    assert not found.problems


def test_ranks_that_cannot_share_the_batch_are_refused_with_those_that_can() -> None:
    with pytest.raises(ConfigError, match="which 12 ranks cannot share equally: use a multiple of 12"):
        plan(config(), nodes=3)


def test_activations_grow_with_the_micro_batch_and_checkpointing_is_told_beside() -> None:
    whole, half = plan(config()), plan(config(train={"micro_batch": 125}))
    assert whole.memory.activations == 2 * half.memory.activations == 250 * 100_000_000
    assert whole.memory_checkpointed is not None
    assert whole.memory.peak - whole.memory_checkpointed == 250 * 80_000_000


def test_what_does_not_fit_is_refused_and_each_remedy_fits() -> None:
    found = plan(config(), memory_gib=16.0)
    (problem,) = found.problems
    assert problem.text.startswith("memory: a GPU has to hold 2")
    assert problem.remedies
    for remedy in problem.remedies:
        name, _, value = remedy.replace("--nodes ", "--nodes=").partition("=")
        if name == "--nodes":
            after = plan(config(), nodes=int(value), memory_gib=16.0)
        else:
            section, _, field = name.partition(".")
            after = plan(config(**{section: {field: value}}), memory_gib=16.0)
        assert not after.problems, remedy
        assert after.memory.peak <= (16.0 - RESERVE_GIB) * GIB
    assert "train.activation_checkpointing=true" in problem.remedies
    assert "train.micro_batch=125" in problem.remedies


def test_where_no_single_change_is_enough_all_are_named_together_or_none() -> None:
    (tight,) = plan(config(zero={"stage": 0}), memory_gib=2.9).problems
    assert tight.remedies == (
        "train.micro_batch=1 zero.stage=3 zero.offload=parameters train.activation_checkpointing=true",
    )
    (hopeless,) = plan(config(), memory_gib=2.2).problems
    assert hopeless.remedies == ()


def test_a_run_that_takes_too_long_is_refused_with_the_nodes_that_are_enough() -> None:
    hours = plan(config(), peak_flops=1e13).hours
    assert hours is not None
    (problem,) = plan(config(), peak_flops=1e13, hours=hours / 1.9).problems
    assert problem.text.startswith("time: ")
    assert problem.remedies[0] == "--nodes 2"
    assert problem.remedies[1].startswith("train.duration=1.58 epochs")
