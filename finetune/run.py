"""A fine-tuning run, in data order: released checkpoint or fresh student, teacher -> losses -> release."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from configs.load import load_config
from engine.command import Command
from engine.session import Session, open_session
from engine.sharding.zero import build_engine
from finetune.beside import watch_evaluation
from finetune.config import FinetuneConfig
from finetune.distill import DistillObjective
from finetune.ensemble import as_one, load_teachers
from finetune.learner import with_projections
from finetune.teacher import Observer, Teacher
from finetune.teacher_cache import CachedTeacher, open_teacher_cache
from models.apprentice import Classroom, logits_of_all
from models.build import build_from_release, build_model


def run(command: Command) -> int:
    """Trains one rank's share of the run; returns the exit code (0 finished, 75 or 130 saved and stopped)."""
    config = load_config(FinetuneConfig, command.recipe, command.overrides).config
    with open_session(command, config) as session:
        students = _build_students(config, session)
        teachers = _load_teachers(config, session)
        observer = _observer(config, session, teachers)
        students = {name: with_projections(one, config, teachers) for name, one in students.items()}
        learner = Classroom(students) if config.students else students[""]
        asked = () if isinstance(observer, CachedTeacher) else teachers
        session.examine(learner, forward=logits_of_all, frozen=[teacher.network for teacher in asked])
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


def _build_students(config: FinetuneConfig, session: Session) -> dict[str, nn.Module]:
    """The run's own student as "", and those beside it, each with the first weights that it would have alone."""
    students = {"": _build_student(config, session)}
    for name, model in config.students.items():
        torch.manual_seed(config.train.seed)
        students[name] = _build_student(
            config.model_copy(update={"model": model, "checkpoint": None}), session
        )
    return students


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


def _load_teachers(config: FinetuneConfig, session: Session) -> Sequence[Teacher]:
    if config.teacher is None or not config.teacher.is_loaded:
        return ()
    return load_teachers(config, class_names=session.index.classes, device=session.world.device)


def _observer(config: FinetuneConfig, session: Session, teachers: Sequence[Teacher]) -> Observer | None:
    if config.teacher is None or config.teacher.cache is None:
        return as_one(teachers)
    cached = open_teacher_cache(config, session.index)
    session.read_beside(cached.sidecar)
    return cached
