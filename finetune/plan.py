"""python -m finetune.plan RECIPE [key=value ...] [options]: what a fine-tuning run needs; `mirada plan` starts it."""

from __future__ import annotations

import sys

from torch import nn

from configs.base import ConfigError
from configs.exit_code import run_main
from configs.training import ModelConfig
from data_pipeline.index import ShardIndex
from engine.planning.command import Trained, plan_run
from finetune.config import FROM_CHECKPOINT, FinetuneConfig
from finetune.follow import follow_checkpoint
from finetune.modes import apply_mode
from finetune.teacher import Teacher
from models.apprentice import Classroom, logits_of_all
from models.build import build_model, load_release, resolve_release
from models.surgery import inherit_args
from models.weight_source import open_source


def decide(config: FinetuneConfig) -> FinetuneConfig:
    """The config as the run will have it; as it is where the checkpoint is not there yet and the network is named."""
    try:
        return follow_checkpoint(config)[0]
    except ConfigError:
        if config.model.name == FROM_CHECKPOINT:
            raise
        return config


def build(config: FinetuneConfig, index: ShardIndex) -> Trained:
    """The students as `finetune.run` builds them, with fresh weights: a plan asks for shapes; and their teachers."""
    model, note = _network(config)
    student = _build(model, config, index)
    apply_mode(student, config.mode)
    if config.students:
        others = {name: _build(model, config, index) for name, model in config.students.items()}
        student = Classroom({"": student, **others})
    if config.teacher is None or not config.teacher.is_loaded:
        return Trained(model=student, forward=logits_of_all, note=note)
    references = (config.teacher.checkpoint, *config.teacher.ensemble)
    try:
        for reference in references:
            resolve_release(reference)
    except ConfigError as missing:
        notes = [note, f"without the teacher, which is not there yet: {missing}"]
        return Trained(model=student, forward=logits_of_all, note="; ".join(filter(None, notes)))
    precision = config.teacher.precision or config.train.precision
    teachers = [Teacher(load_release(reference), precision=precision) for reference in references]
    frozen = [teacher.network for teacher in teachers]
    return Trained(model=student, forward=logits_of_all, frozen=frozen, note=note)


def _build(model: ModelConfig, config: FinetuneConfig, index: ShardIndex) -> nn.Module:
    data = config.data
    return build_model(
        model,
        num_classes=len(index.classes),
        in_chans=data.channels,
        image_size=data.image_size,
        other_sizes=data.image_sizes[:-1],
    )


def _network(config: FinetuneConfig) -> tuple[ModelConfig, str]:
    """With the arguments that a checkpoint hands on; and what could not be known."""
    if config.checkpoint is None:
        return config.model, ""
    try:
        return inherit_args(config.model, open_source(config.checkpoint)), ""
    except ConfigError as missing:
        return config.model, f"without the checkpoint, which is not there yet: {missing}"


if __name__ == "__main__":
    run_main(lambda: plan_run(FinetuneConfig, build, sys.argv[1:], decide=decide))
