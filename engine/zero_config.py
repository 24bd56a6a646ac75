"""Our config -> DeepSpeed's settings; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from configs.base import ConfigError
from configs.training import RunConfig
from engine.world import World

_BUCKET = 50_000_000
"""Most numbers reduced at once; DeepSpeed's own default of 5e8 reserves 2 GB per rank."""


def deepspeed_config(config: RunConfig, world: World, *, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's settings for this run; `zero.extra` may add keys, but none that Mirada sets."""
    micro_batch = _micro_batch(config, world)
    stage = config.zero.stage
    zero: dict[str, Any] = {"stage": stage}
    ours: dict[str, Any] = {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": config.train.global_batch // (micro_batch * world.size),
        "gradient_clipping": 0.0 if stage == 0 else config.optim.clip_grad or 0.0,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": zero,
    }
    if config.train.precision == "bf16":
        ours["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    _check_conflicts(ours, config.zero.extra)
    settings = _merged(ours, config.zero.extra)
    if stage > 0:
        settings["zero_optimization"].setdefault("reduce_bucket_size", min(_BUCKET, max(num_parameters, 1)))
        settings["zero_optimization"].setdefault("overlap_comm", world.device.type != "cpu")
    return settings


def _micro_batch(config: RunConfig, world: World) -> int:
    total, limit = config.train.global_batch, config.train.micro_batch
    if total % world.size:
        below = total // world.size * world.size
        allowed = [str(size) for size in (below, below + world.size) if size]
        raise ConfigError(
            f"train.global_batch is {total}, which {world.size} ranks cannot share equally: "
            f"use a multiple of {world.size} ({' or '.join(allowed)}), or another number of ranks"
        )
    share = total // world.size
    if limit is None or limit >= share:
        return share
    divisors = [size for size in range(1, limit + 1) if share % size == 0]
    if divisors[-1] * 2 <= limit:
        allowed = [str(size) for size in range(1, share + 1) if share % size == 0]
        raise ConfigError(
            f"train.micro_batch is {limit}, but the share of a rank is {share} images ({total} over {world.size} "
            f"ranks), which divides into micro-batches of {', '.join(allowed)} only; "
            "change train.global_batch or train.micro_batch"
        )
    return divisors[-1]


_OTHER_OWNERS = {
    "optimizer": "optim",
    "scheduler": "schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
}


def _check_conflicts(ours: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Raises a ConfigError that lists the keys of `extra` that Mirada sets from its own config."""
    clashes = sorted(set(_leaves(ours)) & set(_leaves(extra)))
    clashes += [f"{key} (use {owner})" for key, owner in _OTHER_OWNERS.items() if key in extra]
    clashes += [key for key in extra if isinstance(ours.get(key), dict) and not isinstance(extra[key], dict)]
    if clashes:
        raise ConfigError(
            f"zero.extra sets keys that Mirada sets from its own config: {', '.join(dict.fromkeys(clashes))}. Mirada "
            f"sets {', '.join(sorted(_leaves(ours)))}; take these out of zero.extra and use train, optim and zero.stage"
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
