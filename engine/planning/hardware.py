"""The hardware a program finds itself on: what it would train on, and how much memory a rank has there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from engine.machine import describe_machine
from engine.planning.accelerator import GIB, Accelerator, Precision, recognize


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One machine."""

    device: Literal["cuda", "cpu"]
    name: str
    """Of its GPUs, or of its processor."""
    num_ranks: int
    """Local processes that `mirada pretrain` starts by itself: one per GPU, else per core up to 2."""
    memory_gib: float
    """Of a GPU, or a rank's share of the host's."""
    precision: Precision
    """bf16 where the GPU computes it in hardware, else fp16 or fp32."""


def find_hardware(gpu: Accelerator | None = None, *, memory_gib: float | None = None) -> Hardware:
    """What is here; or, for a run elsewhere, one GPU of the kind given. `memory_gib` replaces what is found."""
    if gpu is not None:
        found = Hardware(
            device="cuda",
            name=gpu.name,
            num_ranks=1,
            memory_gib=gpu.memory_gib,
            precision=_precision(gpu),
        )
    else:
        found = _gpus() if torch.cuda.is_available() else _host()
    return Hardware(
        device=found.device,
        name=found.name,
        num_ranks=found.num_ranks,
        memory_gib=memory_gib or found.memory_gib,
        precision=found.precision,
    )


def _gpus() -> Hardware:
    name = torch.cuda.get_device_name(0)
    kind = recognize(name)
    unknown: Precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return Hardware(
        device="cuda",
        name=name,
        num_ranks=torch.cuda.device_count(),
        memory_gib=torch.cuda.get_device_properties(0).total_memory / GIB,
        precision=unknown if kind is None else _precision(kind),
    )


def _precision(gpu: Accelerator) -> Precision:
    if gpu.bf16 is not None:
        return "bf16"
    return "fp32" if gpu.fp16 is None else "fp16"


def _host() -> Hardware:
    machine = describe_machine()
    num_ranks = min(2, int(machine["cores"]))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        device="cpu",
        name=str(machine["processor"]),
        num_ranks=num_ranks,
        memory_gib=total / GIB / num_ranks,
        precision="fp32",
    )
