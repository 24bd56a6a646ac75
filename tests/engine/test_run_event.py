"""What a start of a run says of itself: its data, and the runs that it builds on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.load import load_config
from data_pipeline.index import open_index
from engine.command import Command
from engine.datasets import open_datasets
from engine.events import EventLog
from engine.results.release import run_of_release
from engine.run_event import describe_run
from engine.run_folder import RunFolder
from engine.world import World
from finetune.config import FinetuneConfig


def write_release(folder: Path, content: dict[str, object]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", **content}))
    (folder / "model.safetensors").touch()
    return str(folder)


def test_it_names_its_data_and_the_run_of_its_teacher_and_keeps_its_id(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    teacher = write_release(tmp_path / "release", {"mirada": {"run_id": "4f3c"}})
    overrides = [f"teacher.checkpoint={teacher}", "checkpoint=resnet18"]
    config = load_config(FinetuneConfig, "configs/smoke/finetune_student.yaml", overrides).config
    folder = RunFolder(path=tmp_path, digest="abc")
    command = Command(program="finetune", recipe="x.yaml", overrides=(), out=tmp_path, fresh=False)
    index, val_index = open_datasets(config, needs_labels=True)

    event = describe_run(command, config, world, folder, index, val_index)

    assert event["origins"] == {
        "teacher": {"path": teacher, "run_id": "4f3c"},
        "start": {"path": "resnet18"},
    }
    assert event["datasets"] == [
        {
            "context": context,
            "name": f"{found.name}/{found.split}",
            "digest": found.digest,
            "source": place,
            "num_samples": found.num_samples,
        }
        for context, place in (("training", config.data.train), ("validation", str(config.data.val)))
        for found in [open_index(place)]
    ]
    assert (event["slurm.job_id"], event["slurm.array_task_id"]) == ("4711", "3")
    EventLog(folder.events).append("run", **event)
    assert describe_run(command, config, world, folder, index, None)["run_id"] == event["run_id"]


def test_a_release_of_somebody_else_names_no_run(tmp_path: Path) -> None:
    assert run_of_release(write_release(tmp_path / "release", {})) is None
    assert run_of_release("resnet18") is None
