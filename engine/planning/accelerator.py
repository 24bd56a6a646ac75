"""Accelerators: the memory and the peak rates of GPUs, from their vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from configs.base import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One kind of GPU."""

    name: str
    """As given on a command line."""
    device_name: str
    """Part of what ``torch.cuda.get_device_name`` says."""
    memory_gib: float
    """About what the driver leaves of the memory on the data sheet."""
    fp32: float
    """Peak 1e12 operations/s outside the tensor cores: torch keeps TF32 off for matrix products."""
    bf16: float | None
    """Peak 1e12 operations/s of dense (not sparse) products that add up in fp32; None where it is not in hardware."""
    fp16: float | None

    def peak_flops(self, precision: Precision) -> float:
        """Operations per second; ConfigError where the hardware has no such precision."""
        peak: float | None = getattr(self, precision)
        if peak is None:
            raise ConfigError(
                f"train.precision is {precision!r}, which a {self.name} does not compute in hardware: "
                "use fp16 or fp32, or another GPU"
            )
        return peak * 1e12


# Vendors print the rates of sparse products first; these are the dense ones, half of those. Sources, all "data sheet":
# NVIDIA H100 (SXM 989, PCIe 756, NVL 835), H200, GH200, B200 (HGX: 2.25 PFLOPS and 180 GB per GPU), A100, A30, A10,
# V100, T4, L4, L40S; NVIDIA "Ada GPU architecture" and "Ampere GA102" whitepapers, appendix A, for GeForce (rates with
# FP32 accumulate); AMD Instinct MI250X (one of its two dies, which is what torch sees) and MI300X.
# More particular device names stand before those they contain.
ACCELERATORS = (
    Accelerator(name="b200", device_name="B200", memory_gib=178, fp32=75, bf16=2250, fp16=2250),
    Accelerator(name="gh200", device_name="GH200", memory_gib=95, fp32=67, bf16=989, fp16=989),
    Accelerator(name="h200", device_name="H200", memory_gib=140, fp32=67, bf16=989, fp16=989),
    Accelerator(name="h100-pcie", device_name="H100 PCIe", memory_gib=79, fp32=51, bf16=756, fp16=756),
    Accelerator(name="h100-nvl", device_name="H100 NVL", memory_gib=93, fp32=60, bf16=835, fp16=835),
    Accelerator(name="h100", device_name="H100", memory_gib=79, fp32=67, bf16=989, fp16=989),
    Accelerator(
        name="a100-40gb", device_name="A100-SXM4-40GB", memory_gib=39.5, fp32=19.5, bf16=312, fp16=312
    ),
    Accelerator(
        name="a100-pcie-40gb", device_name="A100-PCIE-40GB", memory_gib=39.5, fp32=19.5, bf16=312, fp16=312
    ),
    Accelerator(name="a100", device_name="A100", memory_gib=79, fp32=19.5, bf16=312, fp16=312),
    Accelerator(name="a30", device_name="A30", memory_gib=23.5, fp32=10.3, bf16=165, fp16=165),
    Accelerator(name="a10", device_name="A10", memory_gib=22, fp32=31.2, bf16=125, fp16=125),
    Accelerator(name="l40s", device_name="L40S", memory_gib=44.5, fp32=91.6, bf16=362, fp16=362),
    Accelerator(name="l4", device_name="L4", memory_gib=22, fp32=30.3, bf16=121, fp16=121),
    Accelerator(
        name="v100-16gb", device_name="V100-SXM2-16GB", memory_gib=15.7, fp32=15.7, bf16=None, fp16=125
    ),
    Accelerator(name="v100", device_name="V100", memory_gib=31.7, fp32=15.7, bf16=None, fp16=125),
    Accelerator(name="t4", device_name="T4", memory_gib=14.6, fp32=8.1, bf16=None, fp16=65),
    Accelerator(name="rtx4090", device_name="RTX 4090", memory_gib=23.5, fp32=82.6, bf16=165, fp16=165),
    Accelerator(name="rtx3090", device_name="RTX 3090", memory_gib=23.5, fp32=35.6, bf16=71, fp16=71),
    Accelerator(name="mi300x", device_name="MI300X", memory_gib=191, fp32=163, bf16=1307, fp16=1307),
    Accelerator(name="mi250x", device_name="MI250X", memory_gib=63.9, fp32=24, bf16=191.5, fp16=191.5),
)


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of that name; ConfigError with the names there are."""
    for accelerator in ACCELERATORS:
        if accelerator.name == name.lower():
            return accelerator
    raise ConfigError(
        f"--gpu {name!r}: not in the table; allowed are {', '.join(one.name for one in ACCELERATORS)}; "
        "for another GPU give --memory-gb and --peak-tflops"
    )


def recognize(device_name: str) -> Accelerator | None:
    """The accelerator that calls itself so; None for one that is not in the table."""
    words = device_name.replace("-", " ").replace("/", " ").split()
    for accelerator in ACCELERATORS:
        parts = accelerator.device_name.replace("-", " ").split()
        if any(words[start : start + len(parts)] == parts for start in range(len(words))):
            return accelerator
    return None


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Peak operations per second of a device; None for CPUs, unknown GPUs and precisions they do not have."""
    if device.type != "cuda":
        return None
    accelerator = recognize(torch.cuda.get_device_name(device))
    if accelerator is None or getattr(accelerator, precision) is None:
        return None
    return accelerator.peak_flops(precision)
