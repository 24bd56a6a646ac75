"""Plan: what a run will need and take, and what keeps it from fitting, before anything is submitted; pure.

recipe + numbers of its model + corpus + request -> Plan(batch, steps, data, memory, cost, problems)
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.training import RunConfig
from engine.planning.memory import checkpoint_bytes
from engine.planning.remedies import Problem, find_problems
from engine.planning.workload import (
    Corpus,
    RankMemory,
    Request,
    Workload,
    changed,
    rank_memory,
    settings_of,
    wall_hours,
)
from engine.timetable import Timetable


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run in numbers."""

    num_ranks: int
    micro_batch: int
    accumulation: int
    timetable: Timetable
    images: int
    corpus: Corpus
    memory: RankMemory
    memory_checkpointed: int | None
    """Peak bytes with activation checkpointing, if the model can."""
    total_flops: float
    gpu_hours: float | None
    hours: float | None
    checkpoint_bytes: int
    num_checkpoints: int
    problems: tuple[Problem, ...]


def make_plan(config: RunConfig, workload: Workload, corpus: Corpus, request: Request) -> Plan:
    """The plan of a run; ConfigError where not even its batch or its schedule can be laid out."""
    settings = settings_of(config, workload, request.num_ranks)
    micro_batch = int(settings["train_micro_batch_size_per_gpu"])
    timetable = Timetable.of(config, steps_per_epoch=corpus.batches_per_epoch)
    images = timetable.total_steps * config.train.global_batch
    total_flops = float(images) * workload.train_flops
    hours = wall_hours(total_flops, request)
    memory = rank_memory(config, workload, request.num_ranks)
    return Plan(
        num_ranks=request.num_ranks,
        micro_batch=micro_batch,
        accumulation=int(settings["gradient_accumulation_steps"]),
        timetable=timetable,
        images=images,
        corpus=corpus,
        memory=memory,
        memory_checkpointed=_memory_checkpointed(config, workload, request),
        total_flops=total_flops,
        gpu_hours=None if hours is None else hours * request.num_ranks,
        hours=hours,
        checkpoint_bytes=checkpoint_bytes(workload.numbers, config),
        num_checkpoints=-(-timetable.total_steps // timetable.checkpoint_every),
        problems=find_problems(config, workload, request, memory=memory, hours=hours),
    )


def _memory_checkpointed(config: RunConfig, workload: Workload, request: Request) -> int | None:
    """The peak with activation checkpointing; None where the model has none."""
    if workload.checkpointed is None:
        return None
    checkpointed = changed(config, train={"activation_checkpointing": True})
    return rank_memory(checkpointed, workload, request.num_ranks).peak
