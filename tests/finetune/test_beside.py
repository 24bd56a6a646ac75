"""finetune.beside: what an evaluation measures of the same passes, every image once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from configs.base import ConfigError
from configs.teacher import OverlapConfig
from engine.results.beside import Several
from engine.results.evaluate import Evaluator
from engine.world import World
from finetune.beside import FurtherStudents, Overlap
from models.apprentice import Classroom
from models.attention_maps import look
from models.overlap import map_correlation, map_pointing
from tests.support.distilling import STATS, make_batch, make_student, make_teacher

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def evaluator(beside: object, *batches: object) -> Evaluator:
    return Evaluator(batches=batches, **STATS, world=ALONE, beside=beside)  # type: ignore[arg-type]


def test_overlap_is_the_mean_over_the_images_that_count() -> None:
    student, teacher = make_student().eval(), make_teacher()
    batch = replace(make_batch(), weights=torch.tensor([1.0] * 6 + [0.0] * 2))
    scores = evaluator(Overlap(student, teacher, OverlapConfig(), ALONE), batch).scores(student)
    images = (batch.images[:6] / 255 - 0.5) / 0.25
    (ours,) = look(student, images, layers=(-2,), of="energy")
    (theirs,) = teacher(batch.images[:6]).attention
    assert scores.more == pytest.approx(
        {
            "map_correlation": map_correlation(ours, theirs).mean().item(),
            "map_pointing": map_pointing(ours, theirs).mean().item(),
        },
        abs=1e-5,
    )
    assert {"val/top1", "val/map_correlation", "val/map_pointing"} < scores.values().keys()
    assert "map_pointing" in str(scores) and "val_raw/map_pointing" in scores.values(raw=True)


def test_an_evaluation_that_was_broken_off_does_not_count() -> None:
    student = make_student().eval()
    beside = Overlap(student, make_teacher(), OverlapConfig(), ALONE)
    whole = evaluator(beside, make_batch()).scores(student).more

    def broken() -> object:
        yield make_batch(seed=1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(evaluator(beside), batches=broken()).scores(student)  # type: ignore[arg-type]
    assert evaluator(beside, make_batch()).scores(student).more == whole


def test_students_of_one_room_have_the_scores_that_each_has_alone() -> None:
    first, second = make_student().eval(), make_student().eval()
    with torch.no_grad():
        nn.init.normal_(second.head.fc.weight, generator=torch.Generator().manual_seed(0))
    room = Classroom({"": first, "b": second}).eval()
    beside = Several([FurtherStudents({"b": second}, ALONE)])
    scores = evaluator(beside, make_batch(), make_batch(seed=1)).scores(room)
    alone = evaluator(None, make_batch(), make_batch(seed=1))
    expected = alone.scores(second)
    assert scores.top1 == alone.scores(first).top1
    assert scores.more == {
        "b/top1": expected.top1, "b/top5": expected.top5, "b/ece": expected.ece, "b/loss": expected.loss
    }  # fmt: skip


def test_a_stage_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"teacher.overlap.student_stage: a map of 8 is asked for, but"):
        Overlap(make_student(), make_teacher(), OverlapConfig(student_stage=8), ALONE)
