"""A fine-tuning run, in data order: checkpoint or fresh student -> mode, teacher -> losses -> release."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from configs.load import load_config
from configs.modes import KnnMode
from engine.command import Command
from engine.session import Session, open_session
from engine.sharding.zero import build_engine, shard_frozen
from engine.world import World
from finetune.beside import watch_evaluation
from finetune.config import FinetuneConfig
from finetune.distill import DistillObjective
from finetune.ensemble import as_one, load_teachers
from finetune.follow import follow_checkpoint
from finetune.learner import with_projections
from finetune.modes import apply_mode, features_of
from finetune.teacher import Observer, Teacher
from finetune.teacher_cache import CachedTeacher, open_teacher_cache
from models.apprentice import Classroom, logits_of_all
from models.build import build_model
from models.surgery import build_from_source
from models.weight_source import WeightSource


def run(command: Command) -> int:
    """Trains one rank's share of the run; returns the exit code (0 finished, 75 or 130 saved and stopped)."""
    recipe = load_config(FinetuneConfig, command.recipe, command.overrides).config
    config, source = follow_checkpoint(recipe)
    with open_session(command, config) as session:
        students = _build_students(config, source, session)
        session.note(apply_mode(students[""], config.mode))
        if isinstance(config.mode, KnnMode):
            return session.evaluate(features_of(students[""]).to(session.world.device), config.mode.probe)
        teachers = _load_teachers(config, session)
        observer = _observer(config, session, teachers)
        students = {name: with_projections(one, config, observer) for name, one in students.items()}
        learner = Classroom(students) if config.students else students[""]
        asked = () if isinstance(observer, CachedTeacher) else teachers
        session.examine(learner, forward=logits_of_all, frozen=[teacher.network for teacher in asked])
        _shard(teachers, config, session.world)
        engine = build_engine(learner, config, session.world)
        objective = DistillObjective(
            engine.module,
            mean=config.data.mean,
            std=config.data.std,
            task_weight=config.task_weight,
            task_fade=config.task_fade,
            label_fraction=config.data.batch_label_fraction,
            label_smoothing=config.train.label_smoothing,
            teacher=observer,
            losses=config.teacher,
            steps=session.steps,
        )
        beside = watch_evaluation(engine.module, config, teachers, session.world)
        trainer = session.trainer(engine, objective, beside=beside, follow=objective.follow)
        return session.close(engine, trainer.fit(session.stop), others=config.students)


def _build_students(
    config: FinetuneConfig, source: WeightSource | None, session: Session
) -> dict[str, nn.Module]:
    """The run's own student as "", and those beside it, each with the first weights that it would have alone."""
    students = {"": _build_student(config, source, session)}
    for name, model in config.students.items():
        torch.manual_seed(config.train.seed)
        students[name] = _build_student(config.model_copy(update={"model": model}), None, session)
    return students


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


def _load_teachers(config: FinetuneConfig, session: Session) -> Sequence[Teacher]:
    if config.teacher is None or not config.teacher.is_loaded:
        return ()
    # What is going to be sharded reaches the device in shares.
    device = "cpu" if config.teacher.sharded else session.world.device
    return load_teachers(config, class_names=session.index.classes, device=device)


def _shard(teachers: Sequence[Teacher], config: FinetuneConfig, world: World) -> None:
    if config.teacher is not None and config.teacher.sharded:
        for teacher in teachers:
            shard_frozen(teacher.network, world)


def _observer(config: FinetuneConfig, session: Session, teachers: Sequence[Teacher]) -> Observer | None:
    if config.teacher is None or config.teacher.cache is None:
        return as_one(teachers)
    cached = open_teacher_cache(config, session.index)
    session.read_beside(cached.sidecar)
    return cached
