"""The demo is commands that a user could type, each done once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from configs.load import load_config
from finetune.config import FinetuneConfig
from launch.demo import Done, Step, _read_done, _write_done, demo_steps
from pretrain.config import PretrainConfig

SCHEMAS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
STEPS = demo_steps(Path("demo"))
TRAININGS = [step for step in STEPS if step.arguments[0] in SCHEMAS]


@pytest.mark.parametrize("step", TRAININGS, ids=lambda step: step.output.parts[1])
def test_each_training_is_a_recipe_with_settings_that_fit_it(step: Step) -> None:
    program, recipe, *overrides, _, out = step.arguments
    loaded = load_config(SCHEMAS[program], recipe, overrides)
    assert loaded.config.data.train == "demo/data/train"
    assert step.output.is_relative_to(out)


def test_the_student_learns_from_the_teacher_and_the_control_from_nobody() -> None:
    loaded = {
        step.output.parts[1]: load_config(FinetuneConfig, step.arguments[1], step.arguments[2:-2]).config
        for step in TRAININGS[1:]
    }
    student, control = loaded["student"], loaded["control"]
    assert student.teacher is not None and student.teacher.checkpoint == "demo/teacher/release"
    assert control.teacher is None and control.checkpoint is None
    assert control.model == student.model
    assert control.train.global_batch == student.train.global_batch
    assert control.data.label_fraction == student.data.label_fraction < 1


def test_a_step_is_skipped_only_after_the_same_command_made_its_output(tmp_path: Path) -> None:
    steps = demo_steps(tmp_path)[:3]
    record = tmp_path / "commands.json"
    assert _read_done(record, steps) == []
    for step in steps:
        step.output.parent.mkdir(parents=True, exist_ok=True)
        step.output.touch()
    _write_done(record, [Done(name=step.title, command=step.command, seconds=1.0) for step in steps])
    assert len(_read_done(record, steps)) == 3
    changed = replace(steps[1], arguments=(*steps[1].arguments, "--more"))
    assert len(_read_done(record, [steps[0], changed, steps[2]])) == 1
    steps[0].output.unlink()
    assert _read_done(record, steps) == []


def test_every_step_after_one_that_was_redone_is_redone() -> None:
    outputs = [step.output for step in STEPS]
    assert outputs.index(Path("demo/teacher/release/model.safetensors")) < outputs.index(
        Path("demo/evaluation.json")
    )
    assert outputs[-1] == Path("demo/report.html")
