"""Workload: what a run trains and on what, in numbers; and what a GPU has to hold for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from configs.training import RunConfig
from engine.planning.memory import Numbers, StateMemory, state_memory
from engine.sharding.zero_config import deepspeed_config
from engine.world import World

RESERVE_GIB = 2.0
"""Of a GPU's memory: the CUDA context, NCCL's channels, cuBLAS' workspace, and what the allocator cannot use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The machines a run is to have, and what it may take."""

    nodes: int
    gpus_per_node: int
    memory_gib: float | None = None
    """Of a GPU; None: not judged."""
    peak_flops: float | None = None
    """Of a GPU at the run's precision; None: no time is told."""
    mfu: float = 0.4
    """Share of the peak that the model's own operations reach (Chowdhery et al. 2022, appendix B)."""
    hours: float | None = None
    """Most hours the run may take."""

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes that a micro-batch takes within a step: a line through two dry runs."""

    fixed: float
    per_image: float

    def bytes(self, micro_batch: int) -> int:
        return int(self.fixed + self.per_image * micro_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is trained, in numbers."""

    numbers: Numbers
    activations: Activations
    checkpointed: Activations | None
    """With activation checkpointing; None for a model that cannot do it, or a recipe that does not allow it."""
    forward_flops: int
    """Per image, of the model alone."""
    train_flops: int
    """Per image, forward and backward, and what frozen networks compute beside it."""
    frozen_bytes: int = 0
    """Weights of frozen networks that every rank holds whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What is trained on, and how the nodes read it."""

    num_samples: int
    num_shards: int
    batches_per_epoch: int
    num_streams: int
    most_shards_per_node: int
    shards_per_rank: float
    amplification: float
    is_assumed: bool
    """Made up from a number of samples, as there is no index yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """What a rank's GPU has to hold at once."""

    state: StateMemory
    activations: int
    frozen: int

    @property
    def steady(self) -> int:
        """Bytes held all the time."""
        state = self.state
        held = state.parameters + state.master_weights + state.optimizer_state + state.gradients + state.ema
        return held + self.frozen

    @property
    def peak(self) -> int:
        """The most: in the backward, or in the optimizer's step."""
        state = self.state
        return self.steady + max(self.activations + state.gathered + state.buckets, state.step_copy)


def settings_of(config: RunConfig, workload: Workload, num_ranks: int) -> dict[str, Any]:
    """DeepSpeed's settings on so many GPUs."""
    world = World(rank=0, size=num_ranks, local_rank=0, device=torch.device("cuda"))
    return deepspeed_config(config, world, num_parameters=workload.numbers.trainable)


def rank_memory(config: RunConfig, workload: Workload, num_ranks: int) -> RankMemory:
    """What each of so many GPUs would have to hold."""
    settings = settings_of(config, workload, num_ranks)
    activations = workload.activations
    if config.train.activation_checkpointing and workload.checkpointed is not None:
        activations = workload.checkpointed
    return RankMemory(
        state=state_memory(workload.numbers, config, settings, num_ranks=num_ranks),
        activations=activations.bytes(int(settings["train_micro_batch_size_per_gpu"])),
        frozen=workload.frozen_bytes,
    )


def wall_hours(total_flops: float, request: Request) -> float | None:
    """How long so many operations take; None where the GPU is not known."""
    if request.peak_flops is None:
        return None
    return total_flops / (request.peak_flops * request.mfu * request.num_ranks) / 3600


def changed(config: RunConfig, **sections: Mapping[str, Any]) -> RunConfig:
    """The config with some fields of its sections exchanged; ValueError where they do not go together."""
    fields = config.model_dump()
    for name, values in sections.items():
        fields[name].update(values)
    return type(config).model_validate(fields)
