"""finetune.config: what cannot be meant is refused, with what could be."""

from __future__ import annotations

from typing import Any

import pytest

from configs.base import ConfigError
from configs.load import load_config
from finetune.config import FinetuneConfig

RECIPE = "configs/finetune/demo_student.yaml"


def load(*overrides: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, RECIPE, overrides).config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("teacher.attention.teacher_layers=[0,1,2]", "teacher.attention.student_stages=[1,2]"),
            "do not pair up",
        ),
        (("teacher.attention.teacher_layers=[]",), "name at least one layer each"),
        (("teacher.ensemble=[a]", "teacher.features={}"), "features of several teachers have no mean"),
        (
            ("teacher.attention.student_stages=matched", "teacher.attention.student_map=gate"),
            "student_map gate counts gates: list the gates",
        ),
        (
            ("model.attention.search={choices: [none, {name: se}]}",),
            "model.attention.search is of `mirada search`, which pretrains: leave it out",
        ),
        (("teacher.logits.loss=crd",), "'crd' is not allowed"),
        (("teacher.logits.weight=0", "teacher.attention=null", "task_weight=0"), "every loss has weight 0"),
        (
            ("students.small={name: resnet18}",),
            "zero.stage 1, which clips by the norm of all students together",
        ),
        (("students.Big={name: resnet18}", "optim.clip_grad=null"), "Big"),
        (
            ("train.activation_checkpointing=true", "teacher.features={}", "teacher.overlap={}"),
            "teacher.attention and teacher.features and teacher.overlap watch layers of the student",
        ),
        (
            ("train.activation_checkpointing=true", "teacher.attention=null", "teacher.overlap={}"),
            "set teacher.overlap=null",
        ),
        (
            ("teacher.overlap={}", "data.val=null"),
            "teacher.overlap is measured on the images of evaluations, and there are none: set data.val",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*overrides)


def test_a_teacher_of_logits_alone_goes_with_recomputed_activations() -> None:
    config = load("train.activation_checkpointing=true", "teacher.attention=null", "teacher.overlap=null")
    assert config.train.activation_checkpointing and config.teacher is not None


def test_divergence_needs_a_weight_of_its_own() -> None:
    attention = {"distance": "kl", "teacher_layers": [-1], "student_stages": [-2]}
    base: dict[str, Any] = load().model_dump(mode="json")
    with pytest.raises(ValueError, match="distance kl needs a weight of its own"):
        FinetuneConfig.model_validate({**base, "teacher": {"checkpoint": "t", "attention": attention}})


def test_a_loss_that_fades_in_counts_from_the_beginning() -> None:
    fade = ("teacher.logits.weight=0", "teacher.logits.fade={to: 1.0, over: 10 steps}")
    teacher = load(*fade).teacher
    assert teacher is not None and "logits" in teacher.losses
    teacher = load("teacher.logits.weight=0").teacher
    assert teacher is not None and "logits" not in teacher.losses


def test_every_teacher_is_one_of_the_releases() -> None:
    releases = load("teacher.checkpoint=a", "teacher.ensemble=[b,c]").releases
    assert releases == {"teacher": "a", "teacher2": "b", "teacher3": "c"}
