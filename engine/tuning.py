"""``kernel: tuned``: the fastest attention kernels, measured once on a machine, remembered, and the same on all ranks.

    what the run knows -> what this machine remembers -> rank 0 measures the rest -> all ranks

A run that is resumed takes the kernels that it began with, which its folder keeps, so that it goes on bit for bit. On
another machine (processor or GPU, threads, torch, FlashAttention) they say nothing, and that machine's are taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.training import RunConfig
from configs.user_cache import read_remembered, remember
from engine.machine import describe_machine
from engine.sharding.zero_config import BatchShape
from engine.world import World
from models.attention import attention_layers
from models.dry_step import Forward
from models.flash import flash_name
from models.kernel_choices import Chosen, Signature, is_kernel, use_choices
from models.kernel_timing import Timing, attention_signatures, time_kernels

log = logging.getLogger(__name__)

KERNELS_FILE = "kernels.json"
"""Of a run folder: what `tune_kernels` gave."""
_KIND = "kernels"
_RULES = 1
"""Counts up when what is measured, or how it is decided, changes."""


def tune_kernels(
    model: nn.Module, config: RunConfig, world: World, *, forward: Forward, known: Path | None
) -> dict[str, Any]:
    """Lets the layers that wish for it take the fastest kernels; all ranks together, before the model is sharded.

    `known` is a file with what this gave before, or None. Gives what the run is to keep; empty where no layer wishes
    for it.
    """
    if not wants_tuning(model):
        return {}
    choices: dict[Signature, Chosen] = {}
    environment = _environment(world.device)
    if world.is_main:
        wanted = _signatures(model, config, world, forward)
        of_run = {} if known is None else _choices_in(_read_json(known), environment)
        choices = of_run | _find(wanted - of_run.keys(), environment, world.device)
    choices = world.broadcast(choices)
    use_choices(choices)
    return _record(environment, choices)


def wants_tuning(model: nn.Module) -> bool:
    """Whether a layer's wish is ``tuned``."""
    return any(getattr(layer, "kernel", None) == "tuned" for layer in attention_layers(model).values())


def _find(
    wanted: Set[Signature], environment: Mapping[str, Any], device: torch.device
) -> dict[Signature, Chosen]:
    """What this machine remembers, and what is measured now and remembered from now on."""
    name = _digest(environment)
    remembered = _choices_in(read_remembered(_KIND, name), environment)
    timings = {signature: time_kernels(signature, device) for signature in wanted - remembered.keys()}
    measured = {signature: timing.kernel for signature, timing in timings.items()}
    if measured:
        _log(timings)
        # Read again: another run may have added to it meanwhile.
        others = _choices_in(read_remembered(_KIND, name), environment)
        remember(_KIND, name, _record(environment, others | measured))
    return {signature: kernel for signature, kernel in (remembered | measured).items() if signature in wanted}


def _signatures(model: nn.Module, config: RunConfig, world: World, forward: Forward) -> Set[Signature]:
    """Of training at each of its sizes, and of evaluation but for its last batch, which is smaller."""
    data, shape = config.data, BatchShape.of(config, world)
    share = -(-config.train.global_batch // world.size)

    def at(size: int, batch: int) -> list[Signature]:
        return attention_signatures(
            model,
            (data.channels, size, size),
            device=world.device,
            precision=config.train.precision,
            batch=batch,
            forward=forward,
        )

    found = [signature for size in data.image_sizes for signature in at(size, shape.micro_batch)]
    with torch.no_grad():
        found += at(data.image_size, share)
    return set(found)


def _environment(device: torch.device) -> dict[str, Any]:
    """What a measurement holds for."""
    if device.type == "cuda":
        machine, threads = torch.cuda.get_device_name(device), None
        flash = flash_name(device)
    else:
        machine, threads, flash = str(describe_machine()["processor"]), torch.get_num_threads(), None
    return {
        "device": machine,
        "threads": threads,
        "torch": torch.__version__,
        "flash": flash,
        "rules": _RULES,
    }


def _digest(environment: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:16]


def _record(environment: Mapping[str, Any], choices: Mapping[Signature, Chosen]) -> dict[str, Any]:
    listed = [{"call": asdict(signature), "kernel": kernel} for signature, kernel in choices.items()]
    return {"environment": dict(environment), "choices": sorted(listed, key=str)}


def _choices_in(record: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[Signature, Chosen]:
    """What a record of this environment says; nothing where it is of another one, or damaged."""
    if record.get("environment") != environment:
        return {}
    try:
        pairs = [(Signature.from_dict(one["call"]), one["kernel"]) for one in record["choices"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {signature: kernel for signature, kernel in pairs if is_kernel(kernel)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _log(timings: Mapping[Signature, Timing]) -> None:
    for signature, timing in timings.items():
        ratios = ", ".join(f"{kernel} {ratio:.2f}" for kernel, ratio in timing.ratios.items())
        log.info(
            "attention %s: %s of %s (times to auto's: %s)", signature, timing.kernel, timing.auto, ratios
        )
