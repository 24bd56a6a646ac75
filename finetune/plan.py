"""python -m finetune.plan RECIPE [key=value ...] [options]: what a fine-tuning run needs; `mirada plan` starts it."""

from __future__ import annotations

import sys

from configs.base import ConfigError
from configs.exit_code import run_main
from data_pipeline.index import ShardIndex
from engine.planning.command import Trained, plan_run
from finetune.config import FinetuneConfig
from models.build import build_model, load_release, resolve_release


def build(config: FinetuneConfig, index: ShardIndex) -> Trained:
    """The student as `finetune.run` builds it, with fresh weights: a plan asks for shapes; and its teacher."""
    data = config.data
    student = build_model(
        config.model,
        num_classes=len(index.classes),
        in_chans=data.channels,
        image_size=data.image_size,
        other_sizes=data.image_sizes[:-1],
    )
    if config.teacher is None or config.teacher.cache is not None:
        return Trained(model=student)
    try:
        resolve_release(config.teacher.checkpoint)
    except ConfigError as missing:
        return Trained(model=student, note=f"without the teacher, which is not there yet: {missing}")
    teacher = load_release(config.teacher.checkpoint).requires_grad_(False)
    return Trained(model=student, frozen=teacher)


if __name__ == "__main__":
    run_main(lambda: plan_run(FinetuneConfig, build, sys.argv[1:]))
