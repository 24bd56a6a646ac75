"""Fits a choice to hardware: the largest size within a latency and a GPU's memory, and how its batch is cut for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from configs.base import ConfigError
from engine.planning.accelerator import GIB
from engine.planning.hardware import Hardware
from engine.planning.inputs import measure_workload, micro_batch_of
from engine.planning.workload import RESERVE_GIB, Request, Workload, changed, rank_memory
from models.complexity import count_parameters
from models.latency import measure_latency
from pretrain.advising.corpus_facts import CorpusFacts
from pretrain.advising.rule import Choice, lighter, recipe
from pretrain.config import PretrainConfig
from pretrain.dry_forward import dry_forward
from pretrain.run import build_task


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a network has to keep."""

    latency_ms: float | None
    """Most milliseconds for one image on `device`."""
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A recipe that keeps the limits, and what was found on the way."""

    choice: Choice
    sections: Mapping[str, Any]
    """As YAML has them."""
    num_parameters: int
    train_flops: int
    """Per image."""
    memory_gib: float
    """Of each rank at the peak of training, as `mirada plan` tells it."""
    latency_ms: float | None
    """Measured, where a limit was given."""
    rejected: tuple[str, ...]
    """Larger sizes, and why they were left."""


def fit(
    facts: CorpusFacts, choice: Choice, hardware: Hardware, limits: Limits, *, train: str, val: str | None
) -> Fitted:
    """The first size of the choice, or of lighter families, that fits; ConfigError with what each would need."""
    rejected: list[str] = []
    for of_family, name in _candidates(choice):
        sections = recipe(facts, of_family, name, train=train, val=val, precision=hardware.precision)
        config = PretrainConfig.model_validate(sections)
        model, objective = build_task(config, num_classes=facts.num_classes)
        latency_ms = _latency_ms(model, config, limits)
        if latency_ms is not None and limits.latency_ms is not None and latency_ms > limits.latency_ms:
            rejected.append(f"{name}: {latency_ms:.1f} ms for an image, more than {limits.latency_ms:g}")
            continue
        micro_batch = micro_batch_of(config, _request(hardware))
        workload = measure_workload(model, config, micro_batch=micro_batch, forward=dry_forward(objective))
        settings, peak = _memory_settings(config, workload, hardware, micro_batch)
        if settings is None:
            usable = hardware.memory_gib - RESERVE_GIB
            rejected.append(f"{name}: {peak / GIB:.1f} GiB for one image at a time, more than {usable:.1f}")
            continue
        return Fitted(
            choice=of_family,
            sections={**sections, "train": {**sections["train"], **settings}},
            num_parameters=count_parameters(model),
            train_flops=workload.train_flops,
            memory_gib=peak / GIB,
            latency_ms=latency_ms,
            rejected=tuple(rejected),
        )
    raise ConfigError(
        "no network of ours fits:\n  "
        + "\n  ".join(rejected)
        + "\nallow more (--latency-ms, --memory-gb), or show smaller "
        "images (--image-size)"
    )


def _candidates(choice: Choice | None) -> Iterator[tuple[Choice, str]]:
    while choice is not None:
        yield from ((choice, name) for name in choice.sizes)
        choice = lighter(choice)


def _latency_ms(model: nn.Module, config: PretrainConfig, limits: Limits) -> float | None:
    if limits.latency_ms is None:
        return None
    shape = (config.data.channels, config.data.image_size, config.data.image_size)
    seconds = measure_latency(model.to(limits.device), shape)
    model.cpu()
    return seconds * 1000


def _memory_settings(
    config: PretrainConfig, workload: Workload, hardware: Hardware, micro_batch: int
) -> tuple[dict[str, Any] | None, int]:
    """The train settings of the fewest cuts that fit, and the peak in bytes; None where nothing does."""
    usable = (hardware.memory_gib - RESERVE_GIB) * GIB
    peak = 0
    for is_checkpointed in (False, True) if workload.checkpointed is not None else (False,):
        count = micro_batch
        while count >= 1:
            settings: dict[str, Any] = {"micro_batch": count} if count < micro_batch else {}
            if is_checkpointed:
                settings["activation_checkpointing"] = True
            peak = rank_memory(changed(config, train=settings), workload, hardware.num_ranks).peak
            if peak <= usable:
                return settings, peak
            count //= 2
    return None, peak


def _request(hardware: Hardware) -> Request:
    return Request(nodes=1, gpus_per_node=hardware.num_ranks)
