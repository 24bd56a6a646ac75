"""A plan as a user reads it: lines of text, or plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from engine.planning.accelerator import GIB
from engine.planning.plan import Plan
from engine.planning.workload import Request, Workload

_STATE = {
    "parameters": "parameters",
    "master_weights": "fp32 master weights",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "ema": "EMA",
}
_WITHIN = {"gathered": "gathered parameters", "buckets": "communication buckets"}


def as_text(plan: Plan, workload: Workload, request: Request, *, model: str, gpu: str | None) -> str:
    """The whole plan, a line for each thing."""
    lines = [f"{name:<18}{value}" for name, value in _lines(plan, workload, request, model=model, gpu=gpu)]
    return "\n".join(lines) + "\n"


def as_json(plan: Plan, workload: Workload, request: Request) -> dict[str, Any]:
    """Every number of the plan and of what it was made from; memory in bytes."""
    return {
        **asdict(plan),
        "memory_peak": plan.memory.peak,
        "workload": asdict(workload),
        "request": asdict(request),
    }


def _lines(
    plan: Plan, workload: Workload, request: Request, *, model: str, gpu: str | None
) -> Iterator[tuple[str, str]]:
    numbers, corpus, timetable = workload.numbers, plan.corpus, plan.timetable
    yield "model", f"{model}, {numbers.trainable / 1e6:,.1f} M trained parameters"
    yield (
        "FLOPs per image",
        f"{_scaled(workload.forward_flops)} forward, {_scaled(workload.train_flops)} in training",
    )
    of_gpu = f", {gpu}" if gpu else ""
    yield "ranks", f"{plan.num_ranks:,} = {request.nodes:,} nodes x {request.gpus_per_node} GPUs{of_gpu}"
    yield (
        "batch",
        f"{timetable.global_batch:,} images = micro-batches of {plan.micro_batch:,} x {plan.accumulation:,} "
        f"x {plan.num_ranks:,} ranks",
    )
    epochs = timetable.total_steps / corpus.batches_per_epoch
    yield (
        "steps",
        f"{timetable.total_steps:,} ({timetable.warmup_steps:,} of warm-up) = {epochs:,.4g} epochs of "
        f"{corpus.batches_per_epoch:,} = {plan.images:,} images",
    )
    assumed = " (assumed)" if corpus.is_assumed else ""
    per_rank = corpus.batches_per_epoch * timetable.global_batch // plan.num_ranks
    yield "data", f"{corpus.num_samples:,} samples in {corpus.num_shards:,} shards{assumed}"
    yield "a rank reads", f"{per_rank:,} samples of {corpus.shards_per_rank:,.1f} shards in an epoch"
    yield "a node reads", _reading(plan, request)
    yield from _memory(plan)
    yield "checkpoints", f"{plan.num_checkpoints:,} of {plan.checkpoint_bytes / 1e9:,.2f} GB"
    yield "compute", _compute(plan, request)


def _reading(plan: Plan, request: Request) -> str:
    corpus = plan.corpus
    divides = "divide" if corpus.num_streams % request.nodes == 0 else "do NOT divide"
    advice = "" if divides == "divide" else f"; set data.streams to a multiple of {request.nodes}"
    return (
        f"at most {corpus.most_shards_per_node:,} shards; {request.nodes:,} nodes {divides} {corpus.num_streams:,} "
        f"streams: read amplification {corpus.amplification:.2f}{advice}"
    )


def _memory(plan: Plan) -> Iterator[tuple[str, str]]:
    memory = plan.memory
    held = {title: getattr(memory.state, name) for name, title in _STATE.items()}
    held["frozen networks"] = memory.frozen
    within = {"activations": memory.activations}
    within |= {title: getattr(memory.state, name) for name, title in _WITHIN.items()}
    yield "memory per GPU", f"{_gib(memory.peak)} GiB at the peak:"
    for title, count in {**held, **within}.items():
        if count:
            yield "", f"{_gib(count):>8} {title}"
    if plan.memory_checkpointed is not None:
        yield "", f"{_gib(plan.memory_checkpointed):>8} in all with train.activation_checkpointing=true"
    if memory.state.host:
        yield "host memory", f"{_gib(memory.state.host)} GiB for each rank"


def _compute(plan: Plan, request: Request) -> str:
    total = f"{_scaled(plan.total_flops)} FLOPs in all"
    if plan.hours is None or plan.gpu_hours is None:
        return f"{total}; no time without --gpu"
    return (
        f"{total}: {plan.gpu_hours:,.1f} GPU-hours, {plan.hours:,.2f} h of wall time at an MFU of {request.mfu:g} "
        "(without evaluation)"
    )


def _gib(count: int) -> str:
    return f"{count / GIB:,.2f}"


def _scaled(count: float) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e6:,.1f} M"
