"""What a student learns by beside itself is sharded with it at every ZeRO stage, and is not released."""

from __future__ import annotations

import pytest
import torch

from configs.teacher import AttentionConfig, FeaturesConfig, TeacherConfig
from engine.sharding.zero import build_engine
from engine.world import World
from finetune.distill import DistillObjective
from models.apprentice import Apprentice, Classroom
from models.carrier import released_parts
from tests.support.distilling import STATS, make_batch, make_student, make_teacher
from tests.support.tiny_run import GLOBAL_BATCH, tiny_config

LOSSES = TeacherConfig(checkpoint="t", attention=AttentionConfig(weight=50.0), features=FeaturesConfig())


def train(world: World, *, stage: int) -> tuple[list[float], dict[str, list[str]]]:
    """Losses of three steps of a room of two, and the names of what is released."""
    students = {}
    for name in ("", "b"):
        student = make_student()
        torch.manual_seed(3)
        students[name] = Apprentice(student, (-2,), widths=[(16, 24)])
    config = tiny_config(stage=stage, world_size=1, steps=3)
    unclipped = config.model_copy(update={"optim": config.optim.model_copy(update={"clip_grad": None})})
    engine = build_engine(Classroom(students), unclipped, world)
    teacher = make_teacher((-1,), (-1,))
    goal = DistillObjective(engine.module, **STATS, teacher=teacher, losses=LOSSES)
    losses = []
    for step in range(3):
        loss = goal(engine.model, make_batch(GLOBAL_BATCH, seed=step))
        engine.accumulate(loss.total, last=True)
        engine.step(step, learning_rate=1e-2)
        losses.append(loss.total.item())
    parts = released_parts(engine.module, engine.release_weights())
    return losses, {name: sorted(weights) for name, (_, weights) in parts.items()}


def test_every_stage_trains_projections_and_students_alike(world: World) -> None:
    found = {stage: train(world, stage=stage) for stage in (0, 2, 3)}
    plain = sorted(make_student().state_dict())
    for stage, (losses, released) in found.items():
        assert released == {"": plain, "b": plain}
        assert losses == pytest.approx(found[0][0], rel=1e-4), stage
