"""python -m finetune.plan RECIPE [key=value ...] [options]: what a fine-tuning run needs; `mirada plan` starts it."""

from __future__ import annotations

import sys

from torch import nn

from configs.base import ConfigError
from configs.exit_code import run_main
from configs.training import ModelConfig
from data_pipeline.index import ShardIndex
from engine.planning.command import Trained, plan_run
from finetune.config import FinetuneConfig
from finetune.teacher import Teacher
from models.apprentice import Classroom, logits_of_all
from models.build import build_model, load_release, resolve_release


def build(config: FinetuneConfig, index: ShardIndex) -> Trained:
    """The students as `finetune.run` builds them, with fresh weights: a plan asks for shapes; and their teachers."""
    student = _build(config.model, config, index)
    if config.students:
        others = {name: _build(model, config, index) for name, model in config.students.items()}
        student = Classroom({"": student, **others})
    if config.teacher is None or not config.teacher.is_loaded:
        return Trained(model=student, forward=logits_of_all)
    references = (config.teacher.checkpoint, *config.teacher.ensemble)
    try:
        for reference in references:
            resolve_release(reference)
    except ConfigError as missing:
        note = f"without the teacher, which is not there yet: {missing}"
        return Trained(model=student, forward=logits_of_all, note=note)
    precision = config.teacher.precision or config.train.precision
    teachers = [Teacher(load_release(reference), precision=precision) for reference in references]
    return Trained(model=student, forward=logits_of_all, frozen=[teacher.network for teacher in teachers])


def _build(model: ModelConfig, config: FinetuneConfig, index: ShardIndex) -> nn.Module:
    data = config.data
    return build_model(
        model,
        num_classes=len(index.classes),
        in_chans=data.channels,
        image_size=data.image_size,
        other_sizes=data.image_sizes[:-1],
    )


if __name__ == "__main__":
    run_main(lambda: plan_run(FinetuneConfig, build, sys.argv[1:]))
