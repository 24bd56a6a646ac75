"""The table of accelerators: devices are recognized by what they call themselves, and CPUs have no peak."""

from __future__ import annotations

import pytest
import torch

from configs.base import ConfigError
from engine.planning.accelerator import ACCELERATORS, find_accelerator, peak_flops, recognize


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_device_is_recognized_by_what_it_calls_itself(device_name: str, name: str) -> None:
    found = recognize(device_name)
    assert found is not None and found.name == name


@pytest.mark.parametrize("device_name", ["NVIDIA A1000", "NVIDIA T400", "Some H1000", "NVIDIA L40"])
def test_a_name_that_only_begins_alike_is_not_recognized(device_name: str) -> None:
    assert recognize(device_name) is None


def test_half_precision_is_faster_than_single_on_every_accelerator() -> None:
    for accelerator in ACCELERATORS:
        assert accelerator.peak_flops("fp16") > 1.5 * accelerator.peak_flops("fp32") > 1e12


def test_a_precision_that_the_hardware_lacks_is_a_mistake_with_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match="'bf16', which a v100 does not compute in hardware: use fp16 or fp32"
    ):
        find_accelerator("V100").peak_flops("bf16")


def test_an_unknown_accelerator_is_a_mistake_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'h900': not in the table; allowed are b200, .*--peak-tflops"):
        find_accelerator("h900")


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu"), "fp32") is None
