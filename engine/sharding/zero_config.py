"""Our config -> DeepSpeed's settings; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs.base import ConfigError
from configs.training import RunConfig
from engine.world import World

_BUCKET = 50_000_000
"""Most numbers reduced at once; DeepSpeed's own default of 5e8 reserves 2 GB per rank."""
_AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


def deepspeed_config(config: RunConfig, world: World, *, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's settings for this run; `zero.extra` may add keys, but none that Mirada sets."""
    shape = BatchShape.of(config, world)
    stage = config.zero.stage
    zero: dict[str, Any] = {"stage": stage, **_offloading(config, world)}
    ours: dict[str, Any] = {
        "train_batch_size": shape.global_batch,
        "train_micro_batch_size_per_gpu": shape.micro_batch,
        "gradient_accumulation_steps": shape.accumulation,
        "gradient_clipping": 0.0 if stage == 0 else config.optim.clip_grad or 0.0,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": zero,
    }
    if config.train.precision != "fp32":
        ours["torch_autocast"] = {"enabled": True, "dtype": _AUTOCAST[config.train.precision]}
    if config.zero.offload != "none":
        ours["zero_force_ds_cpu_optimizer"] = False  # ours step on a CPU as well, and nothing is compiled
    if config.optim.name != "adamw":
        ours["zero_allow_untested_optimizer"] = True  # tested in tests/distributed/test_exact.py
    if config.optim.name == "muon" and stage == 3:
        zero["reduce_scatter"] = False  # Muon needs whole gradients
    _check_conflicts(ours, config.zero.extra)
    settings = _merged(ours, config.zero.extra)
    if stage > 0:
        settings["zero_optimization"].setdefault("reduce_bucket_size", min(_BUCKET, max(num_parameters, 1)))
        settings["zero_optimization"].setdefault("overlap_comm", world.device.type != "cpu")
    return settings


def frozen_config() -> dict[str, Any]:
    """DeepSpeed's settings for a network without an optimizer whose weights lie on the ranks in shares."""
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """How a global batch is cut: over ranks, and on each rank into micro-batches."""

    global_batch: int
    ranks: int
    micro_batch: int
    """Images a rank takes through the model at once."""

    @classmethod
    def of(cls, config: RunConfig, world: World) -> BatchShape:
        """The largest micro-batch within `train.micro_batch` that divides a rank's share."""
        return cls(
            global_batch=config.train.global_batch, ranks=world.size, micro_batch=_micro_batch(config, world)
        )

    @property
    def accumulation(self) -> int:
        """Micro-batches that a rank adds up for one optimizer step."""
        return self.global_batch // (self.micro_batch * self.ranks)

    def __str__(self) -> str:
        ranks = f"{self.ranks} rank{'' if self.ranks == 1 else 's'}"
        times = f" x {self.accumulation} micro-batches" if self.accumulation > 1 else ""
        return f"global batch {self.global_batch} = {ranks} x {self.micro_batch} images{times}"


def _offloading(config: RunConfig, world: World) -> dict[str, Any]:
    place = {"device": "cpu", "pin_memory": world.device.type != "cpu"}
    match config.zero.offload:
        case "none":
            return {}
        case "optimizer":
            return {"offload_optimizer": place}
        case "parameters":
            return {"offload_optimizer": place, "offload_param": place}


def _micro_batch(config: RunConfig, world: World) -> int:
    total, limit = config.train.global_batch, config.train.micro_batch
    unit = (
        2 if config.data.augment.mixes else 1
    )  # neighbours are mixed: a pair stays on one rank and in one micro-batch
    why = ", and mixup and cutmix need pairs" if unit > 1 else ""
    if total % (world.size * unit):
        step = world.size * unit
        allowed = [str(size) for size in (total // step * step, total // step * step + step) if size]
        raise ConfigError(
            f"train.global_batch is {total}, which {world.size} ranks cannot share equally{why}: "
            f"use a multiple of {step} ({' or '.join(allowed)}), or another number of ranks"
        )
    share = total // world.size
    if limit is None or limit >= share:
        return share
    divisors = [size for size in range(unit, share + 1, unit) if share % size == 0]
    largest = max((size for size in divisors if size <= limit), default=0)
    if largest * 2 <= limit:
        raise ConfigError(
            f"train.micro_batch is {limit}, but the share of a rank is {share} images ({total} over {world.size} "
            f"ranks){why}, which divides into micro-batches of {', '.join(map(str, divisors))} only; "
            "change train.global_batch or train.micro_batch"
        )
    return largest


_OTHER_OWNERS = {
    "optimizer": "optim",
    "scheduler": "schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
    "activation_checkpointing": "train.activation_checkpointing",
}


def _check_conflicts(ours: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Raises a ConfigError that lists the keys of `extra` that Mirada sets from its own config."""
    clashes = sorted(set(_leaves(ours)) & set(_leaves(extra)))
    clashes += [f"{key} (use {owner})" for key, owner in _OTHER_OWNERS.items() if key in extra]
    clashes += [key for key in extra if isinstance(ours.get(key), dict) and not isinstance(extra[key], dict)]
    if clashes:
        raise ConfigError(
            f"zero.extra sets keys that Mirada sets from its own config: {', '.join(dict.fromkeys(clashes))}. Mirada "
            f"sets {', '.join(sorted(_leaves(ours)))}; take these out of zero.extra and use train, optim "
            "and the other fields of zero"
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged
