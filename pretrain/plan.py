"""python -m pretrain.plan RECIPE [key=value ...] [options]: what a pretraining run needs; `mirada plan` starts it."""

from __future__ import annotations

import sys

from configs.exit_code import run_main
from data_pipeline.index import ShardIndex
from engine.planning.command import Trained, plan_run
from pretrain.config import PretrainConfig
from pretrain.dry_forward import dry_forward
from pretrain.run import build_task


def build(config: PretrainConfig, index: ShardIndex) -> Trained:
    """The network and what its objective does with it."""
    model, objective = build_task(config, num_classes=len(index.classes))
    return Trained(model=model, forward=dry_forward(objective))


if __name__ == "__main__":
    run_main(lambda: plan_run(PretrainConfig, build, sys.argv[1:]))
