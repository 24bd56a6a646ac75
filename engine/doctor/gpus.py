"""Each rank's GPU, and which attention kernel runs on it, compared with the formula."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.finding import Finding
from engine.doctor.staff import Staff, differing
from models.attention import attend, choose_kernel

_GIB = 2**30
_FREE_SHARE = 0.9
"""A GPU with less than this of its memory free before the run began is somebody else's too."""
_TOKENS, _HEADS, _WIDTH = 197, 12, 64  # a ViT-B at 224 pixels
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
_REPEATS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    name: str
    identity: str
    """Differs between the GPUs of a node."""
    memory_gib: float
    free_share: float


def check_gpus(staff: Staff, wanted_per_node: int) -> Finding:
    """A GPU of its own for every rank, all of one kind and free."""
    devices = staff.ask(lambda: _device(staff.world.device))
    if not wanted_per_node and not any(devices):
        return Finding(check="gpus", said="none asked for, none used")
    without = [node for node, device in zip(staff.nodes, devices, strict=True) if device is None]
    if without:
        return Finding(
            check="gpus",
            level="fail",
            said=f"no GPU is visible to a rank on {', '.join(dict.fromkeys(without))}",
            advice="set gpus_per_node, see that torch is built for CUDA, and run nvidia-smi on that node",
        )
    found = [device for device in devices if device is not None]
    shared = len(found) - len(
        {(node, device.identity) for node, device in zip(staff.nodes, found, strict=True)}
    )
    kinds = differing([device.name for device in found], staff.nodes)
    busy = [node for node, device in zip(staff.nodes, found, strict=True) if device.free_share < _FREE_SHARE]
    said = f"{len(found)} x {found[0].name}, {found[0].memory_gib:.0f} GiB each"
    if shared:
        return Finding(
            check="gpus",
            level="fail",
            said=f"{shared} ranks share a GPU with another",
            advice="let tasks_per_node be gpus_per_node, or leave it out",
        )
    if kinds:
        return Finding(
            check="gpus", level="note", said=kinds, advice="the slowest kind sets the pace; use constraint"
        )
    if busy:
        return Finding(
            check="gpus",
            level="fail",
            said=f"memory is in use by others on {', '.join(dict.fromkeys(busy))}",
            advice="run nvidia-smi there, and exclude the node until its processes are gone",
        )
    return Finding(check="gpus", said=said)


def check_attention(staff: Staff) -> Finding:
    """The kernel that training takes for a ViT-B, that it computes what it should, and its speed beside the formula."""
    seen = staff.ask(lambda: _try_attention(staff.world.device))
    kernel, _, speedup = seen[0]
    kinds = differing([name for name, _, _ in seen], staff.nodes)
    wrong = [node for node, (_, error, _) in zip(staff.nodes, seen, strict=True) if error > 1]
    if wrong:
        return Finding(
            check="attention",
            level="fail",
            said=f"{kernel} computes something else than the formula on {', '.join(dict.fromkeys(wrong))}",
            advice="set model.attention.kernel: math, and report it with mirada doctor's output",
        )
    if kinds:
        return Finding(
            check="attention",
            level="fail",
            said=kinds,
            advice="the same packages and drivers belong on all nodes; model.attention.kernel chooses one for all",
        )
    return Finding(check="attention", said=f"{kernel}, {speedup:.1f} times as fast as the formula")


def _device(device: torch.device) -> _Device | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return _Device(
        name=properties.name,
        identity=str(getattr(properties, "uuid", device.index)),
        memory_gib=total / _GIB,
        free_share=free / total,
    )


def _try_attention(device: torch.device) -> tuple[str, float, float]:
    """Kernel, largest error in units of what is tolerable, and speed as a multiple of the formula's."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, _HEADS, _TOKENS, _WIDTH)
    q, k, v = torch.randn(shape, generator=generator).to(device, dtype).unbind()
    expected = attend(q.float(), k.float(), v.float(), kernel="math")
    error = float((attend(q, k, v).float() - expected).abs().max()) / _TOLERANCE[dtype]
    formula_s = _seconds(lambda: attend(q, k, v, kernel="math"), device)
    kernel_s = _seconds(lambda: attend(q, k, v), device)
    return choose_kernel(q, k, v), error, formula_s / kernel_s


def _seconds(function: Callable[[], Tensor], device: torch.device) -> float:
    """Best of a few, after one to warm up."""
    best = float("inf")
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
