"""models.kernel_timing: auto's kernel stays, unless another is faster beyond doubt."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor

import models.kernel_timing as timing
from models.attention import AttendCall, run_kernel, use_attend
from models.kernel_choices import Chosen, Signature
from models.kernel_timing import attention_signatures, time_kernels

CPU = torch.device("cpu")
WITH_BIAS = Signature(
    q=(8, 2, 9, 16),
    k=(8, 2, 9, 16),
    v=(8, 2, 9, 16),
    bias=(4, 2, 9, 9),
    dtype="float32",
    device="cpu",
    differentiates=True,
    learns_bias=True,
)
"""auto takes math for it, and could take sdpa or blocked."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_ROUNDS", 5)


@pytest.fixture
def _on_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the time that this process has a core, which no other one's work adds to."""
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=time.process_time))


def plant(monkeypatch: pytest.MonkeyPatch, name: str, kernel: Callable[[AttendCall], Tensor]) -> None:
    """A kernel in the place of another one."""

    def run(chosen: Chosen, call: AttendCall) -> Tensor:
        return kernel(call) if chosen == name else run_kernel(chosen, call)

    monkeypatch.setattr(timing, "run_kernel", run)


@pytest.mark.usefixtures("_on_its_core")
def test_a_slow_kernel_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(call: AttendCall) -> Tensor:
        return torch.stack([run_kernel("sdpa", call) for _ in range(20)]).mean(dim=0)

    plant(monkeypatch, "sdpa", slow)
    found = time_kernels(WITH_BIAS, CPU)
    assert found.auto == "math" and found.kernel != "sdpa"
    assert set(found.ratios) == {"math", "sdpa", "blocked"} and found.ratios["sdpa"] > 2


@pytest.mark.usefixtures("_on_its_core")
def test_a_much_faster_kernel_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "sdpa", lambda call: call.q + call.k + call.v + call.bias.sum())  # type: ignore[union-attr]
    size = (64, 2, 49, 32)
    found = time_kernels(replace(WITH_BIAS, q=size, k=size, v=size, bias=(4, 2, 49, 49)), CPU)
    assert found.kernel == "sdpa" and found.ratios["sdpa"] < 0.5 < found.ratios["blocked"]


def test_a_kernel_that_cannot_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(call: AttendCall) -> Tensor:
        raise RuntimeError("No available kernel")

    plant(monkeypatch, "blocked", fail)
    assert set(time_kernels(WITH_BIAS, CPU).ratios) == {"math", "sdpa"}


def seconds(monkeypatch: pytest.MonkeyPatch, **of_kernels: Iterator[float]) -> None:
    """The time that each run of a kernel takes; math takes a second."""
    clocks = {"math": itertools.repeat(1.0), "sdpa": itertools.repeat(2.0), "blocked": itertools.repeat(2.0)}
    clocks |= of_kernels
    monkeypatch.setattr(timing, "_run_s", lambda kernel, call, repeats: next(clocks[kernel]))
    monkeypatch.setattr(timing, "_shortened", lambda call, kernel: call)


ROUNDS_OF_ALL = 2 + 5
"""Runs of a kernel in the first rounds, two to warm up among them."""


@pytest.mark.parametrize(
    ("taken", "clock"),
    [
        ("math", itertools.repeat(0.96)),
        ("sdpa", itertools.repeat(0.94)),
        # Much faster in most rounds, and slower in too many.
        ("math", itertools.cycle([0.5, 0.5, 0.5, 1.1, 1.1])),
        # It was luck.
        ("math", itertools.chain([0.5] * ROUNDS_OF_ALL, itertools.repeat(1.0))),
    ],
    ids=["within the margin", "beyond it", "not always", "not again"],
)
def test_the_rule(taken: str, clock: Iterator[float], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch, sdpa=clock)
    assert time_kernels(WITH_BIAS, CPU).kernel == taken


def test_the_fastest_of_several_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch, sdpa=itertools.repeat(0.8), blocked=itertools.repeat(0.6))
    found = time_kernels(WITH_BIAS, CPU)
    assert found.kernel == "blocked" and found.ratios == {"math": 1.0, "sdpa": 0.8, "blocked": 0.6}


@pytest.mark.parametrize(("num_biases", "left"), [(4, 2), (8, 2), (1, 2)])
def test_of_a_long_call_a_part_of_the_batch_is_measured(
    num_biases: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here an item takes 0.1 s."""
    measured: list[AttendCall] = []

    def run_s(kernel: Chosen, call: AttendCall, repeats: int) -> float:
        measured.append(call)
        return 0.1 * len(call.q)

    monkeypatch.setattr(timing, "_run_s", run_s)
    time_kernels(replace(WITH_BIAS, bias=(num_biases, 2, 9, 9)), CPU)
    q, k, v, bias = measured[-1][:4]
    assert bias is not None and [len(x) for x in (q, k, v, bias)] == [left, left, left, min(num_biases, left)]
    assert q.requires_grad and bias.requires_grad and q.is_leaf and bias.is_leaf


def test_what_is_measured_is_what_the_layers_call() -> None:
    args = {"img_size": 32, "window_size": 4, "depths": (2, 1), "embed_dim": 16, "num_heads": (1, 2)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **args)
    assert attention_signatures(swin, (3, 32, 32), device=CPU, precision="fp32", batch=2) == []
    use_attend(swin, "tuned")
    found = attention_signatures(swin, (3, 32, 32), device=CPU, precision="bf16", batch=2)
    assert [(one.q, one.bias) for one in found] == [
        ((8, 1, 16, 16), (1, 1, 16, 16)),
        ((8, 1, 16, 16), (4, 1, 16, 16)),
        ((2, 2, 16, 16), (1, 2, 16, 16)),
    ]
    assert all(one.differentiates and one.learns_bias and one.dtype == "bfloat16" for one in found)
    with torch.no_grad():
        found = attention_signatures(swin, (3, 32, 32), device=CPU, precision="fp32", batch=2)
    assert not any(one.differentiates or one.learns_bias for one in found)


def test_measuring_draws_nothing_from_the_runs_randomness() -> None:
    state = torch.get_rng_state()
    time_kernels(WITH_BIAS, CPU)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_torchs_kernels_take_part_on_a_gpu(dtype: str) -> None:
    size = (8, 4, 197, 64)
    plain = Signature(
        q=size,
        k=size,
        v=size,
        bias=None,
        dtype=dtype,
        device="cuda",
        differentiates=True,
        learns_bias=False,
    )
    found = time_kernels(plain, torch.device("cuda"))
    assert "sdpa: efficient" in found.ratios and ("sdpa: flash" in found.ratios) == (dtype == "bfloat16")
