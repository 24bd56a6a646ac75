"""A fine-tuning run, in data order: checkpoint or fresh student -> mode, teacher -> losses -> release."""

from __future__ import annotations

from torch import nn

from configs.load import load_config
from configs.modes import KnnMode
from engine.command import Command
from engine.session import Session, open_session
from engine.sharding.zero import build_engine
from finetune.config import FinetuneConfig
from finetune.distill import DistillObjective, wanted_attention
from finetune.follow import follow_checkpoint
from finetune.modes import apply_mode, features_of
from finetune.teacher import Teacher, load_teacher
from models.build import build_model
from models.surgery import build_from_source
from models.weight_source import WeightSource


def run(command: Command) -> int:
    """Trains one rank's share of the run; returns the exit code (0 finished, 75 or 130 saved and stopped)."""
    recipe = load_config(FinetuneConfig, command.recipe, command.overrides).config
    config, source = follow_checkpoint(recipe)
    with open_session(command, config) as session:
        student = _build_student(config, source, session)
        session.note(apply_mode(student, config.mode))
        if isinstance(config.mode, KnnMode):
            return session.evaluate(features_of(student).to(session.world.device), config.mode.probe)
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


def _build_student(config: FinetuneConfig, source: WeightSource | None, session: Session) -> nn.Module:
    data, classes = config.data, session.index.classes
    num_classes = config.model.num_classes or len(classes)
    if source is None:
        return build_model(
            config.model,
            num_classes=num_classes,
            in_chans=data.channels,
            image_size=data.image_size,
            other_sizes=data.image_sizes[:-1],
            mean=data.mean,
            std=data.std,
        )
    student, report = build_from_source(
        config.model,
        source,
        num_classes=num_classes,
        class_names=classes,
        in_chans=data.channels,
        image_size=data.image_size,
        other_sizes=data.image_sizes[:-1],
        mean=data.mean,
        std=data.std,
    )
    session.started_from(report)
    return student


def _load_teacher(config: FinetuneConfig, session: Session) -> Teacher | None:
    if config.teacher is None:
        return None
    attention = wanted_attention(config.teacher)
    return load_teacher(
        config.teacher.checkpoint,
        num_classes=len(session.index.classes),
        class_names=session.index.classes,
        attention_layers=() if attention is None else attention.teacher_layers,
        device=session.world.device,
        precision=config.train.precision,
    )
