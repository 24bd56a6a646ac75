"""The stages of a pipeline: their order, and what their references become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.base import ConfigError
from configs.load import load_config
from launch.many.config import PipelineConfig
from launch.many.pipeline import Stage, order_stages

OUT = Path("/runs/p")
TEACHER = {"program": "pretrain", "recipe": "t.yaml"}


def stages(tmp_path: Path, **given: Any) -> list[Stage]:
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"stages": given}, sort_keys=False))
    return order_stages(load_config(PipelineConfig, path).config, OUT)


def test_references_become_paths_and_decide_the_order(tmp_path: Path) -> None:
    found = stages(
        tmp_path,
        scores={
            "program": "evaluate",
            "arguments": ["${teacher.release}", "${student.release}", "--json", "${scores.folder}/s.json"],
        },
        student={
            "program": "finetune",
            "recipe": "s.yaml",
            "settings": {"teacher.checkpoint": "${teacher.release}", "optim.lr": 0.1},
        },
        teacher=TEACHER,
    )
    assert [stage.name for stage in found] == ["teacher", "student", "scores"]
    assert found[1].arguments == ("teacher.checkpoint=/runs/p/teacher/release", "optim.lr=0.1")
    assert found[2].arguments == (
        "/runs/p/teacher/release",
        "/runs/p/student/release",
        "--json",
        "/runs/p/scores/s.json",
    )
    assert [stage.after for stage in found] == [(), ("teacher",), ("teacher", "student")]
    assert [stage.folder for stage in found] == [OUT / "teacher", OUT / "student", OUT / "scores"]


def test_after_adds_an_order_that_no_reference_tells(tmp_path: Path) -> None:
    found = stages(tmp_path, second={**TEACHER, "after": ["first"]}, first=TEACHER)
    assert [stage.name for stage in found] == ["first", "second"]
    assert found[1].after == ("first",)


def test_stages_without_order_keep_that_of_the_file(tmp_path: Path) -> None:
    assert [stage.name for stage in stages(tmp_path, b=TEACHER, a=TEACHER, c=TEACHER)] == ["b", "a", "c"]


def test_every_wrong_reference_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        stages(
            tmp_path,
            teacher={**TEACHER, "settings": {"checkpoint": "${teacher.release}"}},
            student={"program": "finetune", "recipe": "s", "settings": {"a": ["${taecher.release}"]}},
            scores={"program": "evaluate", "arguments": ["${teacher.weights}"], "after": ["nobody"]},
            page={"program": "report", "arguments": ["${scores.release}"]},
        )
    said = str(raised.value)
    assert "stages.teacher: ${teacher.release} is what this stage itself is to make" in said
    assert "stages.student: ${taecher.release} names no stage; did you mean 'teacher'?" in said
    assert (
        "stages.scores: ${teacher.weights} names no output; a stage has folder, release, checkpoints" in said
    )
    assert "stages.scores.after: no stage 'nobody'; there are teacher, student, scores, page" in said
    assert "stages.page: ${scores.release} names what evaluate does not make; it has a folder alone" in said


def test_a_circle_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stages wait for each other: b -> a -> b"):
        stages(
            tmp_path,
            top={**TEACHER, "after": ["b"]},
            b={**TEACHER, "after": ["a"]},
            a={**TEACHER, "after": ["b"]},
        )


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"program": "pretrain"}, "pretrain needs a recipe"),
        ({**TEACHER, "arguments": ["--x"]}, "pretrain takes settings (key: value), not arguments"),
        ({"program": "evaluate", "recipe": "x"}, "evaluate takes arguments"),
        ({"program": "train"}, "'train' is not allowed"),
    ],
)
def test_a_stage_that_its_program_cannot_take_is_refused(
    tmp_path: Path, stage: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        stages(tmp_path, one=stage)
    assert said in str(raised.value)


def test_a_stage_needs_a_name_that_can_be_referred_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a stage's name is a word of letters, digits and _"):
        stages(tmp_path, **{"my stage": TEACHER})
