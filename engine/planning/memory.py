"""The memory a rank needs under ZeRO: arithmetic on the numbers of a model, of what DeepSpeed allocates at each stage.

Weights, gradients and optimizer state are fp32 at every precision: bf16 and fp16 are autocast with fp32 masters.
Rajbhandari et al. 2020 (ZeRO), section 3; the terms they leave out are DeepSpeed 0.19.8's, named where they are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from configs.training import OptimConfig, RunConfig
from engine.sharding.optim import parameter_groups

FP32 = 4
"""Bytes."""
_STATES = {"adamw": 2, "lamb": 2, "lion": 1}
"""Numbers that an optimizer keeps for each it trains."""
_ALL_REDUCE = 500_000_000
"""Most numbers that DeepSpeed copies together for one all-reduce at stage 0."""
_PERSISTENT = 100_000
"""DeepSpeed keeps parameters of at most so many numbers whole at stage 3 (stage3_param_persistence_threshold)."""
_REUSE_DISTANCE = 1_000_000_000
"""And what is used again within so many numbers of other parameters is not given back (stage3_max_reuse_distance)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """How many numbers a model has, by what becomes of them."""

    trainable: int
    fixed: int
    """Frozen parameters and buffers."""
    averaged: int
    """What an EMA follows: parameters and the floating buffers that are saved."""
    small: int
    """Trainable, in tensors that stage 3 keeps whole."""
    optimizer: int
    """What the optimizer keeps for all of them."""

    @classmethod
    def of(cls, model: nn.Module, optim: OptimConfig) -> Numbers:
        """Counts a model that is not sharded yet."""
        trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        whole = [tensor.numel() for tensor in (*model.parameters(), *model.buffers())]
        saved = model.state_dict(keep_vars=True).values()
        return cls(
            trainable=sum(trained),
            fixed=sum(whole) - sum(trained),
            averaged=sum(tensor.numel() for tensor in saved if tensor.is_floating_point()),
            small=sum(count for count in trained if count <= _PERSISTENT),
            optimizer=_optimizer_numbers(model, optim),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMemory:
    """What a rank holds between steps or, where it says so, within one; in bytes."""

    parameters: int
    master_weights: int
    """The fp32 copy that the optimizer works on; stage 1 and 2 have one beside the parameters even in fp32."""
    optimizer_state: int
    gradients: int
    """When the backward ends."""
    ema: int
    gathered: int
    """Parameters of other ranks that stage 3 holds within a step."""
    buckets: int
    """Buffers of the communication, in the backward."""
    step_copy: int
    """Gradients flattened for the optimizer, when activations and buckets are gone."""
    host: int
    """In the host's memory: what `zero.offload` moves there."""


def state_memory(
    numbers: Numbers, config: RunConfig, settings: Mapping[str, Any], *, num_ranks: int
) -> StateMemory:
    """What each rank needs for a model; `settings` are those that `deepspeed_config` gives."""
    share = -(-numbers.trainable // num_ranks)
    optimizer_share = -(-numbers.optimizer // num_ranks)
    zero, accumulates = settings["zero_optimization"], settings["gradient_accumulation_steps"] > 1
    stage, offload = config.zero.stage, config.zero.offload
    host = {"none": 0, "optimizer": optimizer_share + 2 * share, "parameters": optimizer_share + 3 * share}
    keeps_optimizer, keeps_parameters = offload == "none", offload != "parameters"
    by_stage = {
        0: {
            "parameters": numbers.trainable,
            "gradients": numbers.trainable,
            "optimizer_state": numbers.optimizer,
        },
        1: {
            "parameters": numbers.trainable,
            "master_weights": keeps_optimizer * share,
            "gradients": numbers.trainable,
            "optimizer_state": keeps_optimizer * optimizer_share,
            "step_copy": keeps_optimizer * share,
        },
        2: {
            "parameters": numbers.trainable,
            "master_weights": keeps_optimizer * share,
            "gradients": keeps_optimizer * share * (2 if accumulates else 1),
            "optimizer_state": keeps_optimizer * optimizer_share,
            "step_copy": keeps_optimizer * share,
        },
        3: {
            "parameters": keeps_parameters * share + numbers.small,
            "gradients": keeps_optimizer * share,
            "optimizer_state": keeps_optimizer * optimizer_share,
            "gathered": _gathered(numbers, zero, num_ranks),
            "step_copy": keeps_optimizer * share,
        },
    }[stage]
    counts = {name: by_stage.get(name, 0) for name in StateMemory.__slots__}
    counts["parameters"] += numbers.fixed
    counts["ema"] = 0 if config.train.ema is None else -(-numbers.averaged // num_ranks)
    counts["buckets"] = _buckets(numbers, config, zero, num_ranks)
    counts["host"] = host[offload]
    return StateMemory(**{name: FP32 * count for name, count in counts.items()})


def checkpoint_bytes(numbers: Numbers, config: RunConfig) -> int:
    """What one checkpoint takes on the disk, all ranks' files together."""
    weights = numbers.trainable + numbers.fixed if config.zero.stage < 3 else numbers.fixed
    masters = numbers.trainable if config.zero.stage > 0 else 0
    average = 0 if config.train.ema is None else numbers.averaged
    return FP32 * (weights + masters + numbers.optimizer + average)


def _gathered(numbers: Numbers, zero: Mapping[str, Any], num_ranks: int) -> int:
    """Stage 3 gives a parameter back only if its next use is far: none does in a model of half a billion numbers.

    The last layer comes back at once in the backward, the first one after twice all others.
    """
    if num_ranks == 1:
        return 0
    distance = int(zero.get("stage3_max_reuse_distance", _REUSE_DISTANCE))
    return min(numbers.trainable - numbers.small, distance // 2)


def _buckets(numbers: Numbers, config: RunConfig, zero: Mapping[str, Any], num_ranks: int) -> int:
    if config.zero.stage == 0:
        return min(_ALL_REDUCE, numbers.trainable) if num_ranks > 1 else 0
    bucket = int(zero["reduce_bucket_size"])
    # Autocast reduces some gradients in the lower precision and has buckets for both; at stage 1 and 2 all are fp32.
    kinds = 1.0 if config.train.precision == "fp32" else 1.5 if config.zero.stage == 3 else 2.0
    buffers = 2 if zero["overlap_comm"] and config.zero.stage < 3 else 1
    return int(bucket * kinds * buffers)


def _optimizer_numbers(model: nn.Module, optim: OptimConfig) -> int:
    """Muon keeps one number for each of its matrices' and two for the rest."""
    total = 0
    for group in parameter_groups(model, optim):
        states = _STATES[optim.name] if optim.name in _STATES else 1 if group["use_muon"] else 2
        total += states * sum(parameter.numel() for parameter in group["params"])
    return total
