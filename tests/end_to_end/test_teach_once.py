"""docs/teach_once.md, command by command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.load import packaged_root
from tests.support.tutorial import run_tutorial

FEWER = (
    "train.evaluate_every='1000 steps' data.val=null schedule.warmup='1 steps' train.ranks=1 tracking.uri=off"
)


@pytest.mark.slow
def test_the_tutorial_of_the_teacher_cache_runs_as_it_is_written(tmp_path: Path) -> None:
    smaller = {
        "pretrain_vit.yaml": f"pretrain_vit.yaml train.duration='2 steps' {FEWER}",
        "finetune_student.yaml": f"finetune_student.yaml {FEWER}",
        "teacher.cache=runs/answers --out": "teacher.cache=runs/answers train.duration='2 steps' --out",
        "'120 steps'": "'2 steps'",
    }
    run_tutorial(packaged_root() / "docs" / "teach_once.md", tmp_path, smaller)
    cache = tmp_path / "runs" / "answers"
    manifest = json.loads((cache / "answers.json").read_text())
    assert manifest["taught"] == {"passes": [1], "copies": 1}
    assert len(list((cache / "pass-0000").iterdir())) == 6
    for name in ("student", "small"):
        assert (tmp_path / "runs" / name / "release" / "model.safetensors").is_file()
