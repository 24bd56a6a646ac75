"""A fine-tuning run, in data order: released checkpoint or fresh student, teacher -> losses -> release."""

from __future__ import annotations

from torch import nn

from configs.load import load_config
from engine.command import Command
from engine.session import Session, open_session
from engine.sharding.zero import build_engine
from finetune.config import FinetuneConfig
from finetune.distill import DistillObjective, wanted_attention
from finetune.teacher import Teacher, load_teacher
from finetune.teacher_cache import CachedTeacher, open_teacher_cache
from models.build import build_from_release, build_model


def run(command: Command) -> int:
    """Trains one rank's share of the run; returns the exit code (0 finished, 75 or 130 saved and stopped)."""
    config = load_config(FinetuneConfig, command.recipe, command.overrides).config
    with open_session(command, config) as session:
        student = _build_student(config, session)
        teacher = _load_teacher(config, session)
        session.examine(student, frozen=None if teacher is None else teacher.network)
        engine = build_engine(student, config, session.world)
        objective = DistillObjective(
            engine.module,
            mean=config.data.mean,
            std=config.data.std,
            task_weight=config.task_weight,
            label_fraction=config.data.batch_label_fraction,
            label_smoothing=config.train.label_smoothing,
            teacher=teacher,
            losses=config.teacher,
        )
        outcome = session.trainer(engine, objective).fit(session.stop)
        return session.close(engine, outcome)


def _build_student(config: FinetuneConfig, session: Session) -> nn.Module:
    data = config.data
    if config.checkpoint is not None:
        return build_from_release(
            config.model,
            config.checkpoint,
            num_classes=len(session.index.classes),
            in_chans=data.channels,
            image_size=data.image_size,
            other_sizes=data.image_sizes[:-1],
            mean=data.mean,
            std=data.std,
        )
    return build_model(
        config.model,
        num_classes=len(session.index.classes),
        in_chans=data.channels,
        image_size=data.image_size,
        other_sizes=data.image_sizes[:-1],
        mean=data.mean,
        std=data.std,
    )


def _load_teacher(config: FinetuneConfig, session: Session) -> Teacher | CachedTeacher | None:
    if config.teacher is None:
        return None
    if config.teacher.cache is not None:
        cached = open_teacher_cache(config, session.index)
        session.read_beside(cached.sidecar)
        return cached
    attention = wanted_attention(config.teacher)
    return load_teacher(
        config.teacher.checkpoint,
        num_classes=len(session.index.classes),
        class_names=session.index.classes,
        attention_layers=() if attention is None else attention.teacher_layers,
        device=session.world.device,
        precision=config.train.precision,
    )
