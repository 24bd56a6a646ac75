"""The command line of `mirada plan`, which both training programs answer: each knows what it would train."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from configs.estimates import Estimate, keep_estimate
from configs.exit_code import USAGE
from configs.load import load_config
from configs.training import RunConfig
from data_pipeline.index import ShardIndex
from engine.planning.accelerator import Precision, find_accelerator
from engine.planning.inputs import measure_corpus, measure_workload, micro_batch_of, open_or_assume_index
from engine.planning.plan import make_plan
from engine.planning.text import as_json, as_text
from engine.planning.workload import Request
from models.dry_step import Forward, call_model

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a program would train, not distributed and on no device."""

    model: nn.Module
    forward: Forward = call_model
    """What its objective does with the model and a batch of images."""
    frozen: Sequence[nn.Module] = ()
    """Networks beside it that learn nothing."""
    note: str = ""
    """What the plan leaves out."""


def plan_run(
    schema: type[Config],
    build: Callable[[Config, ShardIndex], Trained],
    arguments: Sequence[str],
    *,
    decide: Callable[[Config], Config] = lambda config: config,
) -> int:
    """Prints the plan of a recipe; 0 if it fits, 2 if not. `decide` settles what a recipe leaves open."""
    given = _parse(arguments)
    loaded = load_config(schema, given.recipe, given.overrides)
    config = decide(loaded.config)
    request = _request(given, config.train.precision)
    micro_batch = micro_batch_of(config, request)
    classes = config.model.num_classes or given.classes
    index = open_or_assume_index(config.data, samples=given.samples, shards=given.shards, classes=classes)
    corpus = measure_corpus(index, config, request, is_assumed=given.samples is not None)
    trained = build(config, index)
    workload = measure_workload(
        trained.model, config, micro_batch=micro_batch, forward=trained.forward, frozen=trained.frozen
    )
    plan = make_plan(config, workload, corpus, request)
    if plan.hours is not None:
        keep_estimate(loaded.digest, Estimate(hours=plan.hours, num_ranks=plan.num_ranks))
    if given.json:
        sys.stdout.write(json.dumps(as_json(plan, workload, request), indent=1) + "\n")
    else:
        sys.stdout.write(as_text(plan, workload, request, model=config.model.name, gpu=given.gpu))
        sys.stdout.write(f"{'note':<18}{trained.note}\n" if trained.note else "")
    for problem in plan.problems:
        ways = (
            " or ".join(problem.remedies) or "none that Mirada knows; choose a smaller model or larger GPUs"
        )
        sys.stderr.write(f"error: {problem.text}\n  what would fit: {ways}\n")
    return USAGE if plan.problems else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mirada plan", allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=1)
    parser.add_argument("--gpu")
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--shards", type=int)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    return parser.parse_intermixed_args(arguments)


def _request(given: argparse.Namespace, precision: Precision) -> Request:
    gpu = None if given.gpu is None else find_accelerator(given.gpu)
    peak_flops = None if gpu is None else gpu.peak_flops(precision)
    return Request(
        nodes=given.nodes,
        gpus_per_node=given.gpus_per_node,
        memory_gib=given.memory_gb or (None if gpu is None else gpu.memory_gib),
        peak_flops=peak_flops if given.peak_tflops is None else given.peak_tflops * 1e12,
        mfu=given.mfu,
        hours=given.hours,
    )
